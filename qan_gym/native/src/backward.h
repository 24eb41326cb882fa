// Gradients of the mean cross-entropy, for the `count` images of a chunk, into `gradient[TENSORS]`; `add`: to what is
// there of earlier chunks. Behind a max-pool only the winner of a window has a gradient.

INLINE floats tanh_slope(floats y) { return broadcast(1.0f) - y * y; }

// Sum over `rows` rows of `width` floats, in their order.
INLINE void sum_rows(const float *rows, int count, int width, int stride, float *gradient, int add) {
  for (int o = 0; o < width; o += LANES) {
    floats sum = {0};
    for (int r = 0; r < count; r++) sum += load(rows + r * stride + o);
    put(gradient + o, sum, width - o, add);
  }
}

// d_hidden, before its tanh.
static void linear2_backward_inputs(const struct model *model, int count, struct workspace *space) {
  for (int b = 0; b < count; b++)
    for (int o = 0; o < HIDDEN_ROOM; o += LANES) {
      const float *d_logits = space->logits + b * model->class_room;
      floats sum = {0};
      for (int k = 0; k < model->classes; k++)
        sum = fmadd(broadcast(d_logits[k]), load(space->linear2_by_class + k * HIDDEN_ROOM + o), sum);
      const int at = b * HIDDEN_ROOM + o;
      store(space->d_hidden + at, sum * tanh_slope(load(space->hidden + at)));
    }
}

static void linear2_backward_weights(const struct model *model, int count, const struct workspace *space,
                                     float *gradient, int add) {
  for (int i = 0; i < HIDDEN; i++)
    for (int k = 0; k < model->classes; k += LANES) {
      floats sum = {0};
      for (int b = 0; b < count; b++) {
        const floats d_logits = load(space->logits + b * model->class_room + k);
        sum = fmadd(broadcast(space->hidden[b * HIDDEN_ROOM + i]), d_logits, sum);
      }
      put(gradient + i * model->classes + k, sum, model->classes - k, add);
    }
}

// d_features of `images` images and `inputs` inputs of linear1: over its outputs, in 16 lanes.
INLINE void linear1_dots(const float *d_hidden, const float *weight, float *d_features, const int images,
                         const int inputs) {
  enum { Q = 16 / LANES };
  floats sums[DOT_IMAGES][DOT_INPUTS][Q];
  UNROLL for (int b = 0; b < images; b++)
    UNROLL for (int i = 0; i < inputs; i++) UNROLL for (int q = 0; q < Q; q++) sums[b][i][q] = (floats){0};
  for (int o = 0; o < HIDDEN_ROOM; o += 16)  // the last 8 of 16 are of the next input: there d_hidden is 0
    UNROLL for (int q = 0; q < Q; q++) {
      floats w[DOT_INPUTS];
      UNROLL for (int i = 0; i < inputs; i++) w[i] = load(weight + i * HIDDEN + o + q * LANES);
      UNROLL for (int b = 0; b < images; b++) {
        const floats d = load(d_hidden + b * HIDDEN_ROOM + o + q * LANES);
        UNROLL for (int i = 0; i < inputs; i++) sums[b][i][q] = fmadd(d, w[i], sums[b][i][q]);
      }
    }
  UNROLL for (int b = 0; b < images; b++)
    UNROLL for (int i = 0; i < inputs; i++) d_features[b * FEATURES + i] = sum_of_16(sums[b][i]);
}

KEEP_OUT void linear1_backward_inputs(const struct model *model, int count, struct workspace *space) {
  for (int i = 0; i < FEATURES; i += DOT_INPUTS) {
    const float *weight = model->at[LINEAR1] + i * HIDDEN;
    int b = 0;
    for (; b + DOT_IMAGES <= count; b += DOT_IMAGES)
      linear1_dots(space->d_hidden + b * HIDDEN_ROOM, weight, space->d_features + b * FEATURES + i, DOT_IMAGES,
                   DOT_INPUTS);
    for (; b < count; b++)
      linear1_dots(space->d_hidden + b * HIDDEN_ROOM, weight, space->d_features + b * FEATURES + i, 1, DOT_INPUTS);
  }
}

// Four inputs from `i` on and `vectors` vectors of outputs from `o` on.
INLINE void linear1_weights_block(const struct workspace *space, int images, int i, int o, float *gradient, int add,
                                  const int vectors) {
  floats sums[4][LINEAR_VECTORS];
  UNROLL for (int r = 0; r < 4; r++) UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = (floats){0};
  for (int b = 0; b < images; b++) {
    floats d[LINEAR_VECTORS];
    UNROLL for (int v = 0; v < vectors; v++) d[v] = load(space->d_hidden + b * HIDDEN_ROOM + o + v * LANES);
    UNROLL for (int r = 0; r < 4; r++) {
      const floats x = broadcast(space->features[b * FEATURES + i + r]);
      UNROLL for (int v = 0; v < vectors; v++) sums[r][v] = fmadd(x, d[v], sums[r][v]);
    }
  }
  UNROLL for (int r = 0; r < 4; r++) UNROLL for (int v = 0; v < vectors; v++) {
    const int at = o + v * LANES;
    put(gradient + (i + r) * HIDDEN + at, sums[r][v], HIDDEN - at, add);
  }
}

KEEP_OUT void linear1_backward_weights(const struct workspace *space, int count, float *gradient, int add) {
  enum { V = LINEAR_VECTORS };
  for (int i = 0; i < FEATURES; i += 4) {
    int o = 0;
    for (; o + V * LANES <= HIDDEN; o += V * LANES) linear1_weights_block(space, count, i, o, gradient, add, V);
    for (; o < HIDDEN; o += LANES) linear1_weights_block(space, count, i, o, gradient, add, 1);
  }
}

// d_map2, before its tanh; and by place of conv2, 4 x 4, the channels that won there.
static void map2_backward(int count, struct workspace *space) {
  for (int b = 0; b < count; b++)
    for (int place = 0; place < PLACES2; place++) {
      for (int c = 0; c < FILTERS2; c++) {
        const int feature = b * FEATURES + c * PLACES2 + place;
        const float y = space->features[feature];
        space->d_map2[(b * PLACES2 + place) * FILTERS2 + c] = space->d_features[feature] * (1.0f - y * y);
      }
    }
  memset(space->won_count, 0, sizeof space->won_count);
  for (int window = 0; window < count * PLACES2; window++)  // image, place of map 2
    for (int c = 0; c < FILTERS2; c++) {
      const int begin = space->winners2[window * FILTERS2 + c];
      const int at = window / PLACES2 * 16 + begin / ROW1 * 4 + begin % ROW1 / FILTERS1;
      space->won[at * FILTERS2 + space->won_count[at]++] = (uint8_t)c;
    }
}

// conv2's weights (5, 160, 64) -> (5, 64, 160).
KEEP_OUT void transpose_conv2(const float *weight, float *by_filter) {
  for (int ky = 0; ky < KERNEL; ky++)
    for (int j = 0; j < SPAN2; j += LANES)
      for (int c = 0; c < FILTERS2; c += LANES) {
        floats r[LANES];
        UNROLL for (int i = 0; i < LANES; i++) r[i] = load(weight + (ky * SPAN2 + j + i) * FILTERS2 + c);
        transpose(r);
        UNROLL for (int i = 0; i < LANES; i++) store(by_filter + (ky * FILTERS2 + c + i) * SPAN2 + j, r[i]);
      }
}

// d_map1, after its tanh: a place of conv2 adds, per kernel row, the filters that won there times their gradients.
KEEP_OUT void conv2_backward_inputs(int count, struct workspace *space) {
  enum { V = SPAN2_VECTORS };
  memset(space->d_map1, 0, sizeof(float) * (size_t)count * MAP1);
  for (int ky = 0; ky < KERNEL; ky++)
    for (int at = 0; at < count * 16; at++) {  // image, row, column
      const int b = at / 16, row = at / 4 % 4, column = at % 4;
      const uint8_t *won = space->won + at * FILTERS2;
      const int won_count = space->won_count[at];
      const float *d = space->d_map2 + (b * PLACES2 + row / 2 * 2 + column / 2) * FILTERS2;
      for (int part = 0; part < SPAN2; part += V * LANES) {
        const float *weight = space->conv2_by_filter + ky * FILTERS2 * SPAN2 + part;
        floats sums[V];
        UNROLL for (int v = 0; v < V; v++) sums[v] = (floats){0};
        for (int k = 0; k < won_count; k++) {
          const floats slope = broadcast(d[won[k]]);
          const float *w = weight + won[k] * SPAN2;
          UNROLL for (int v = 0; v < V; v++) sums[v] = fmadd(slope, load(w + v * LANES), sums[v]);
        }
        float *out = space->d_map1 + b * MAP1 + (row + ky) * ROW1 + column * FILTERS1 + part;
        UNROLL for (int v = 0; v < V; v++) store(out + v * LANES, load(out + v * LANES) + sums[v]);
      }
    }
}

// One kernel row `ky` of the filters from `first` to `first` + 15, into conv2_rows (16, 160).
INLINE void conv2_weight_rows(int count, int ky, int first, struct workspace *space) {
  enum { V = SPAN2_VECTORS, IMAGES = 4 };  // at a time, so that what they see of map 1 stays in the first-level cache
  for (int b0 = 0; b0 < count; b0 += IMAGES)
    for (int c = 0; c < 16; c++)
      for (int part = 0; part < SPAN2; part += V * LANES) {
        float *row = space->conv2_rows + c * SPAN2 + part;
        floats sums[V];
        UNROLL for (int v = 0; v < V; v++) sums[v] = b0 > 0 ? load(row + v * LANES) : (floats){0};
        for (int b = b0; b < count && b < b0 + IMAGES; b++)
          UNROLL for (int place = 0; place < PLACES2; place++) {
            const int at = (b * PLACES2 + place) * FILTERS2 + first + c;
            const floats d = broadcast(space->d_map2[at]);
            const float *map = space->map1 + b * MAP1 + ky * ROW1 + space->winners2[at] + part;
            UNROLL for (int v = 0; v < V; v++) sums[v] = fmadd(d, load(map + v * LANES), sums[v]);
          }
        UNROLL for (int v = 0; v < V; v++) store(row + v * LANES, sums[v]);
      }
}

KEEP_OUT void conv2_backward_weights(int count, struct workspace *space, float *gradient, int add) {
  for (int ky = 0; ky < KERNEL; ky++)
    for (int first = 0; first < FILTERS2; first += 16) {
      conv2_weight_rows(count, ky, first, space);
      for (int j = 0; j < SPAN2; j += LANES)
        for (int c = 0; c < 16; c += LANES) {
          floats r[LANES];
          UNROLL for (int i = 0; i < LANES; i++) r[i] = load(space->conv2_rows + (c + i) * SPAN2 + j);
          transpose(r);
          float *out = gradient + (ky * SPAN2 + j) * FILTERS2 + first + c;
          UNROLL for (int i = 0; i < LANES; i++) put(out + i * FILTERS2, r[i], LANES, add);
        }
    }
}

// The pixels of one channel that a filter of conv1 sees from each place on: rows of COLUMN, one below the other.
static void columns_of(const float *channel, float *columns) {
  for (int x = 0; x <= SIDE - KERNEL; x++)
    for (int y = 0; y < SIDE; y++)
      memcpy(columns + (x * SIDE + y) * COLUMN, channel + y * SIDE + x, sizeof(float) * COLUMN);
}

// Adds one image and channel to conv1_taps (32, 48), over the live windows; d_map: before conv1's tanh.
INLINE void conv1_taps_of(const float *d_map, const uint16_t *winners, const uint8_t *live, int count,
                          const float *columns, float *taps) {
  enum { V = TAP_VECTORS, F = TAP_FILTERS };
  for (int c = 0; c < FILTERS1; c += F) {
    floats sums[F][V];
    UNROLL for (int f = 0; f < F; f++)
      UNROLL for (int v = 0; v < V; v++) sums[f][v] = load(taps + (c + f) * TAPS + v * LANES);
    for (int k = 0; k < count; k++)
      UNROLL for (int f = 0; f < F; f++) {
        const int at = live[k] * FILTERS1 + c + f;
        const floats d = broadcast(d_map[at]);
        UNROLL for (int v = 0; v < V; v++) sums[f][v] = fmadd(d, load(columns + winners[at] + v * LANES), sums[f][v]);
      }
    UNROLL for (int f = 0; f < F; f++)
      UNROLL for (int v = 0; v < V; v++) store(taps + (c + f) * TAPS + v * LANES, sums[f][v]);
  }
}

// d_map1 of image b becomes that before the tanh. Adds it to `bias`, and to `blank` where the window sees background.
INLINE void map1_backward(int b, struct workspace *space, float bias[FILTERS1], float blank[FILTERS1]) {
  float *d_map = space->d_map1 + b * MAP1;
  const float *map = space->map1 + b * MAP1;
  const uint8_t *live = space->live + b * PLACES1, *end = live + space->live_count[b];
  for (int place = 0; place < PLACES1; place++) {
    const int is_live = live < end && *live == place;
    for (int c = 0; c < FILTERS1; c += LANES) {
      const int at = place * FILTERS1 + c;
      const floats d = load(d_map + at) * tanh_slope(load(map + at));
      store(d_map + at, d);
      store(bias + c, load(bias + c) + d);
      if (!is_live) store(blank + c, load(blank + c) + d);
    }
    live += is_live;
  }
}

// conv1's gradients; d_map1 is used up.
static void conv1_backward(const struct model *model, const struct qan_images *data, int count,
                           struct workspace *space, float *const gradient[TENSORS], int add) {
  float bias[FILTERS1] = {0}, blank[FILTERS1] = {0};
  const int channels = model->channels;
  memset(space->conv1_taps, 0, sizeof(float) * (size_t)channels * FILTERS1 * TAPS);
  for (int b = 0; b < count; b++) {
    map1_backward(b, space, bias, blank);
    for (int c = 0; c < channels; c++) {
      columns_of(space->images + (b * channels + c) * PIXELS, space->columns);
      conv1_taps_of(space->d_map1 + b * MAP1, space->winners1 + b * MAP1, space->live + b * PLACES1,
                    space->live_count[b], space->columns, space->conv1_taps + c * FILTERS1 * TAPS);
    }
  }
  for (int tap = 0; tap < model->taps; tap++) {
    const int channel = tap % channels, ky = tap / channels / KERNEL, kx = tap / channels % KERNEL;
    const float background = (0.0f - data->mean[channel]) / data->std[channel];
    for (int f = 0; f < FILTERS1; f++) {
      const float live = space->conv1_taps[(channel * FILTERS1 + f) * TAPS + ky * COLUMN + kx];
      const float sum = __builtin_fmaf(background, blank[f], live);
      float *out = gradient[CONV1] + tap * FILTERS1 + f;
      *out = add ? *out + sum : sum;
    }
  }
  for (int c = 0; c < FILTERS1; c += LANES) put(gradient[CONV1_BIAS] + c, load(bias + c), LANES, add);
}

// The weights in the order in which the backward pass reads them.
static void prepare_backward(const struct model *model, struct workspace *space) {
  transpose_conv2(model->at[CONV2], space->conv2_by_filter);
  for (int k = 0; k < model->classes; k++) {
    float *row = space->linear2_by_class + k * HIDDEN_ROOM;
    for (int i = 0; i < HIDDEN; i++) row[i] = model->at[LINEAR2][i * model->classes + k];
    for (int i = HIDDEN; i < HIDDEN_ROOM; i++) row[i] = 0;
  }
}

static void backward(const struct model *model, const struct qan_images *data, int count, struct workspace *space,
                     float *const gradient[TENSORS], int add) {
  linear2_backward_inputs(model, count, space);
  linear2_backward_weights(model, count, space, gradient[LINEAR2], add);
  sum_rows(space->logits, count, model->classes, model->class_room, gradient[LINEAR2_BIAS], add);
  linear1_backward_inputs(model, count, space);
  linear1_backward_weights(space, count, gradient[LINEAR1], add);
  sum_rows(space->d_hidden, count, HIDDEN, HIDDEN_ROOM, gradient[LINEAR1_BIAS], add);
  map2_backward(count, space);
  sum_rows(space->d_map2, count * PLACES2, FILTERS2, FILTERS2, gradient[CONV2_BIAS], add);
  conv2_backward_inputs(count, space);
  conv2_backward_weights(count, space, gradient[CONV2], add);
  conv1_backward(model, data, count, space, gradient, add);
}
