// From the bytes of images to logits and losses, for the `count` images of a chunk.

// A network's sizes and parameters.
struct model {
  int channels, classes, class_room;  // C; K; K rounded up to a multiple of 16
  int taps;                           // weights of a filter of conv1, in the order (row, column, channel)
  int tap_pixel[KERNEL * KERNEL * MAX_CHANNELS];  // where in an image the pixel of each lies, from the window's first
  const float *at[TENSORS];
};

static struct model model_of(const struct qan_images *data, const float *weights) {
  const struct layout layout = layout_of(data->channels, data->classes);
  struct model model = {
      .channels = (int)data->channels,
      .classes = (int)data->classes,
      .class_room = (int)rounded_up(data->classes),
      .taps = KERNEL * KERNEL * (int)data->channels,
  };
  for (int tap = 0; tap < model.taps; tap++) {
    const int channel = tap % model.channels, column = tap / model.channels % KERNEL;
    model.tap_pixel[tap] = channel * PIXELS + tap / model.channels / KERNEL * SIDE + column;
  }
  for (int t = 0; t < TENSORS; t++) model.at[t] = weights + layout.start[t];
  return model;
}

// image (C, 32, 32) of bytes -> (byte - mean) / std.
INLINE void normalise(const struct qan_images *data, const uint8_t *image, float *out) {
  for (int c = 0; c < data->channels; c++) {
    const floats mean = broadcast(data->mean[c]), std = broadcast(data->std[c]);
    for (int i = c * PIXELS; i < (c + 1) * PIXELS; i += LANES) store(out + i, (of_bytes(image + i) - mean) / std);
  }
}

// Place of map 1 -> does its window of 7 x 7 pixels see anything but background, which is byte 0?
INLINE int sees_more_than_background(const uint8_t *image, int channels, int place) {
  const int row = place / SIDE1 * POOL1, column = place % SIDE1 * POOL1;
  uint64_t any = 0;
  for (int c = 0; c < channels; c++)
    for (int y = 0; y < 7; y++) {
      uint64_t word;
      memcpy(&word, image + c * PIXELS + (row + y) * SIDE + column, sizeof word);
      any |= word;
    }
  return any << 8 != 0;  // without the eighth pixel of each row, which the highest byte holds (little-endian)
}

// The largest of some values, and where it was found.
struct largest {
  floats value;
  ints at;
};

// The second if it is larger, else the first.
INLINE struct largest larger(struct largest a, struct largest b) {
  const mask m = greater(b.value, a.value);
  return (struct largest){chosen(m, b.value, a.value), chosen_ints(m, b.at, a.at)};
}

// conv1, max-pool, tanh, at some places of map 1. winners: where in `workspace.columns` the largest value was found; of
// equal ones the first by rows.
KEEP_OUT void conv1_forward(const struct model *model, const float *image, const uint8_t *places, int count, float *map,
                            uint16_t *winners) {
  enum { V = CONV1_VECTORS, WINDOW = POOL1 * POOL1 };
  for (int filter = 0; filter < FILTERS1; filter += V * LANES)
    for (int k = 0; k < count; k++) {
      const int place = places[k], row = place / SIDE1 * POOL1, column = place % SIDE1 * POOL1;
      floats sums[WINDOW][V];
      UNROLL for (int q = 0; q < WINDOW; q++) UNROLL for (int v = 0; v < V; v++) sums[q][v] = (floats){0};
      ROLLED for (int tap = 0; tap < model->taps; tap++) {  // unrolled, pixels would stay in registers that sums need
        const float *pixel = image + model->tap_pixel[tap] + row * SIDE + column;
        const float *weight = model->at[CONV1] + tap * FILTERS1 + filter;
        floats w[V];
        UNROLL for (int v = 0; v < V; v++) w[v] = load(weight + v * LANES);
        UNROLL for (int q = 0; q < WINDOW; q++) {
          const floats x = broadcast(pixel[q / POOL1 * SIDE + q % POOL1]);
          UNROLL for (int v = 0; v < V; v++) sums[q][v] = fmadd(x, w[v], sums[q][v]);
        }
      }
      UNROLL for (int v = 0; v < V; v++) {
        struct largest rows[POOL1];
        UNROLL for (int y = 0; y < POOL1; y++) {
          rows[y] = (struct largest){sums[y * POOL1][v], (ints){0} + y * COLUMN};
          UNROLL for (int x = 1; x < POOL1; x++)
            rows[y] = larger(rows[y], (struct largest){sums[y * POOL1 + x][v], (ints){0} + (x * SIDE + y) * COLUMN});
        }
        const struct largest best = larger(larger(rows[0], rows[1]), rows[2]);
        const int out = filter + v * LANES;
        store(map + place * FILTERS1 + out, best.value + load(model->at[CONV1_BIAS] + out));
        store_shorts(winners + place * FILTERS1 + out, best.at + (column * SIDE + row) * COLUMN);
      }
    }
  for (int k = 0; k < count; k++)
    for (float *y = map + places[k] * FILTERS1, *end = y + FILTERS1; y < end; y += LANES) store(y, tanh_of(load(y)));
}

// What conv1 gives for background, in `blank_map1`.
static void conv1_of_background(const struct model *model, const struct qan_images *data, struct workspace *space) {
  for (int c = 0; c < model->channels; c++) {
    const float background = (0.0f - data->mean[c]) / data->std[c];
    for (int i = 0; i < 7 * SIDE; i++) space->blank[c * PIXELS + i] = background;
  }
  const uint8_t first = 0;
  uint16_t winners[FILTERS1];
  conv1_forward(model, space->blank, &first, 1, space->blank_map1, winners);
}

// Map 1 of image b: windows that see only background are copied, the live ones computed.
static void map1_of(const struct model *model, const uint8_t *image, int b, struct workspace *space) {
  uint8_t *live = space->live + b * PLACES1;
  float *map = space->map1 + b * MAP1;
  int count = 0;
  for (int place = 0; place < PLACES1; place++) {
    if (sees_more_than_background(image, model->channels, place))
      live[count++] = (uint8_t)place;
    else
      memcpy(map + place * FILTERS1, space->blank_map1, sizeof space->blank_map1);
  }
  space->live_count[b] = count;
  const float *pixels = space->images + b * model->channels * PIXELS;
  conv1_forward(model, pixels, live, count, map, space->winners1 + b * MAP1);
}

// conv2, max-pool, tanh. winners2: where in map 1 the window of the largest value begins; of equal ones the first.
KEEP_OUT void conv2_forward(const struct model *model, int count, struct workspace *space) {
  enum { P = CONV2_PLACES, V = CONV2_VECTORS, WINDOWS = P / 4 };
  for (int filter = 0; filter < FILTERS2; filter += V * LANES)
    for (int b = 0; b < count; b++)
      for (int place = 0; place < PLACES2; place += WINDOWS) {
        const int begin = place / 2 * 2 * ROW1 + place % 2 * 2 * FILTERS1;  // in map 1
        const float *map = space->map1 + b * MAP1 + begin;
        floats sums[P][V];
        UNROLL for (int q = 0; q < P; q++) UNROLL for (int v = 0; v < V; v++) sums[q][v] = (floats){0};
        for (int ky = 0; ky < KERNEL; ky++)
          for (int j = 0; j < SPAN2; j++) {
            const float *weight = model->at[CONV2] + (ky * SPAN2 + j) * FILTERS2 + filter;
            floats w[V];
            UNROLL for (int v = 0; v < V; v++) w[v] = load(weight + v * LANES);
            UNROLL for (int q = 0; q < P; q++) {  // window q / 4; in it row q / 2 % 2, column q % 2
              const floats x = broadcast(map[(ky + q / 2 % 2) * ROW1 + (q / 4 * 2 + q % 2) * FILTERS1 + j]);
              UNROLL for (int v = 0; v < V; v++) sums[q][v] = fmadd(x, w[v], sums[q][v]);
            }
          }
        UNROLL for (int window = 0; window < WINDOWS; window++) UNROLL for (int v = 0; v < V; v++) {
          const ints first = (ints){0} + (begin + window * 2 * FILTERS1);
          struct largest best = {sums[window * 4][v], first};
          UNROLL for (int q = 1; q < 4; q++)
            best = larger(best, (struct largest){sums[window * 4 + q][v], first + (q / 2 * ROW1 + q % 2 * FILTERS1)});
          const int channel = filter + v * LANES, out = (b * PLACES2 + place + window) * FILTERS2 + channel;
          store(space->map2 + out, tanh_of(best.value + load(model->at[CONV2_BIAS] + channel)));
          store_shorts(space->winners2 + out, best.at);
        }
      }
}

// A linear layer: out[b][o] = sum over i of x[b][i] weight[i][o], in the order of i, + bias[o].
struct linear {
  const float *x, *weight, *bias;
  float *out;
  int inputs, outputs;  // a multiple of LANES: what is read and computed behind the last output is not used
  int x_stride, weight_stride, out_stride;
};

// `images` images and `vectors` vectors of outputs.
INLINE void linear_block(const struct linear *layer, int b0, int output, const int images, const int vectors) {
  floats sums[5][LINEAR_VECTORS];
  UNROLL for (int b = 0; b < images; b++) UNROLL for (int v = 0; v < vectors; v++) sums[b][v] = (floats){0};
  const float *x = layer->x + b0 * layer->x_stride, *weight = layer->weight + output;
  for (int i = 0; i < layer->inputs; i++, weight += layer->weight_stride) {
    floats w[LINEAR_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) w[v] = load(weight + v * LANES);
    UNROLL for (int b = 0; b < images; b++) {
      const floats input = broadcast(x[b * layer->x_stride + i]);
      UNROLL for (int v = 0; v < vectors; v++) sums[b][v] = fmadd(input, w[v], sums[b][v]);
    }
  }
  UNROLL for (int b = 0; b < images; b++) UNROLL for (int v = 0; v < vectors; v++) {
    const int at = output + v * LANES;
    store(layer->out + (b0 + b) * layer->out_stride + at, sums[b][v] + load(layer->bias + at));
  }
}

KEEP_OUT void linear_forward(const struct linear *layer, int count) {
  enum { V = LINEAR_VECTORS };
  int output = 0;
  for (; output + V * LANES <= layer->outputs; output += V * LANES) {
    int b = 0;
    for (; b + 5 <= count; b += 5) linear_block(layer, b, output, 5, V);
    for (; b < count; b++) linear_block(layer, b, output, 1, V);
  }
  for (; output < layer->outputs; output += LANES) {
    int b = 0;
    for (; b + 5 <= count; b += 5) linear_block(layer, b, output, 5, 1);
    for (; b < count; b++) linear_block(layer, b, output, 1, 1);
  }
}

static void linear1_forward(const struct model *model, int count, struct workspace *space) {
  for (int b = 0; b < count; b++)  // (place, channel) -> (channel, place)
    for (int place = 0; place < PLACES2; place++)
      for (int c = 0; c < FILTERS2; c++)
        space->features[b * FEATURES + c * PLACES2 + place] = space->map2[b * FEATURES + place * FILTERS2 + c];
  const struct linear layer = {
      .x = space->features,
      .weight = model->at[LINEAR1],
      .bias = model->at[LINEAR1_BIAS],
      .out = space->hidden,
      .inputs = FEATURES,
      .outputs = (HIDDEN + LANES - 1) / LANES * LANES,
      .x_stride = FEATURES,
      .weight_stride = HIDDEN,
      .out_stride = HIDDEN_ROOM,
  };
  linear_forward(&layer, count);
  for (int b = 0; b < count; b++) {
    float *hidden = space->hidden + b * HIDDEN_ROOM;
    for (int o = 0; o < HIDDEN; o += LANES) store(hidden + o, tanh_of(load(hidden + o)));
    for (int o = HIDDEN; o < HIDDEN_ROOM; o++) hidden[o] = 0;
  }
}

static void linear2_forward(const struct model *model, int count, struct workspace *space) {
  const struct linear layer = {
      .x = space->hidden,
      .weight = model->at[LINEAR2],
      .bias = model->at[LINEAR2_BIAS],
      .out = space->logits,
      .inputs = HIDDEN,
      .outputs = model->class_room,
      .x_stride = HIDDEN_ROOM,
      .weight_stride = model->classes,
      .out_stride = model->class_room,
  };
  linear_forward(&layer, count);
}

// The logits of the images at `index` (NULL: those from `first` on).
static void forward(const struct model *model, const struct qan_images *data, const int64_t *index, int64_t first,
                    int count, struct workspace *space) {
  for (int b = 0; b < count; b++) {
    const uint8_t *image = data->images + (index ? index[b] : first + b) * data->channels * PIXELS;
    normalise(data, image, space->images + b * model->channels * PIXELS);
    map1_of(model, image, b, space);
  }
  conv2_forward(model, count, space);
  linear1_forward(model, count, space);
  linear2_forward(model, count, space);
}

// Cross-entropy of one image, from its K logits. With a batch: its logits become the gradient of the mean over that
// many images times `scale`, scale (softmax - target) / batch, and 0 behind the K.
INLINE float cross_entropy(const struct model *model, float *logits, int64_t label, int64_t batch, float scale) {
  float largest = logits[0], sum = 0, exps[MAX_CLASSES];
  for (int k = 1; k < model->classes; k++) largest = logits[k] > largest ? logits[k] : largest;
  for (int k = 0; k < model->classes; k++) {
    exps[k] = exp_of(logits[k] - largest);
    sum += exps[k];
  }
  const float loss = log_of(sum) - (logits[label] - largest);
  if (batch > 0) {
    for (int k = 0; k < model->classes; k++) logits[k] = scale * ((exps[k] / sum - (float)(k == label)) / (float)batch);
    for (int k = model->classes; k < model->class_room; k++) logits[k] = 0;
  }
  return loss;
}
