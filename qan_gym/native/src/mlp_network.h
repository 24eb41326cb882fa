// Forward and backward pass of a multilayer perceptron.

// A row's network, and its arrays in `space->pool`, one right after another: what a small network works in fits into
// the first level of cache.
struct mlp {
  const struct qan_mlp_task *task;
  struct mlp_layout layout;
  const float *weights;
  float *gradient;                  // laid out like the weights, 0 in the gaps
  float *before;                    // weights before an update
  float *inputs;                    // (MLP_CHUNK, D rounded up to 16)
  float *outputs[MLP_LAYERS];       // (MLP_CHUNK, room) of each layer, after its activation; the last: logits
  float *slopes[MLP_HIDDEN];        // (MLP_CHUNK, room) of tanh and GELU
  float *normal[MLP_HIDDEN];        // (MLP_CHUNK, room) normalised, before the activation, 0 in the gaps; NULL: they are not
  float *scales[MLP_HIDDEN];        // (MLP_CHUNK,) 1 over each image's standard deviation
  float *d_outputs[MLP_LAYERS];     // (MLP_CHUNK, room) gradients of the loss, before the activation
  float *by_output[MLP_LAYERS];     // (room, inputs rounded up) weights, transposed; not of the first layer
  float *by_class;                  // (room, MLP_CHUNK) logits, then their exps or gradients
  int input_room;
};

static struct mlp mlp_of(const struct qan_mlp_task *task, const float *weights, struct mlp_space *space) {
  struct mlp mlp = {.task = task, .layout = mlp_layout_of(task), .weights = weights};
  const struct mlp_layout *layout = &mlp.layout;
  float *free = space->pool;
  mlp.input_room = (int)rounded_up(task->inputs);
  mlp.inputs = free;
  free += MLP_CHUNK * mlp.input_room;
  for (int l = 0; l < layout->layers; l++) {
    mlp.outputs[l] = free;
    mlp.d_outputs[l] = mlp.outputs[l] + MLP_CHUNK * layout->room[l];
    mlp.by_output[l] = mlp.d_outputs[l] + MLP_CHUNK * layout->room[l];
    free = mlp.by_output[l];
    if (l > 0) free += layout->room[l] * layout->room[l - 1];
    if (l == layout->layers - 1) break;
    mlp.slopes[l] = free;
    if (task->activation != MLP_RELU) free += MLP_CHUNK * layout->room[l];
    if (!task->normalised) continue;
    mlp.normal[l] = free;
    mlp.scales[l] = mlp.normal[l] + MLP_CHUNK * layout->room[l];
    free = mlp.scales[l] + MLP_CHUNK;
  }
  mlp.by_class = free;
  mlp.gradient = mlp.by_class + MLP_CHUNK * layout->room[layout->layers - 1];
  mlp.before = mlp.gradient + layout->size;
  return mlp;
}

// (D,) bytes -> byte * scale + shift. The last vector overlaps the one before.
INLINE void mlp_inputs(const struct qan_mlp_task *task, const uint8_t *image, float *out) {
  const floats scale = broadcast(task->scale), shift = broadcast(task->shift);
  const int64_t last = task->inputs - LANES;
  for (int64_t i = 0; i < last; i += LANES) store(out + i, of_bytes(image + i) * scale + shift);
  store(out + last, of_bytes(image + last) * scale + shift);
}

// Of each image of a hidden layer: (x - mean) / sqrt(variance + 1e-5) over the layer's units, into `normal`.
static void mlp_normalise(const struct mlp *mlp, int layer, int count) {
  const int room = mlp->layout.room[layer], width = mlp->layout.outputs[layer];
  float *scales = mlp->scales[layer];  // first the sums of squares
  const float share = 1.0f / (float)width;
  for (int b = 0; b < count; b++) {
    const float *row = mlp->outputs[layer] + b * room;
    float *normal = mlp->normal[layer] + b * room;
    floats sums[VECTORS] = {0}, squares[VECTORS] = {0};
    for (int o = 0; o < width; o += 16)
      UNROLL for (int j = 0; j < VECTORS; j++)
        sums[j] += first_lanes(load(row + o + j * LANES), width - o - j * LANES);
    const floats mean = broadcast(sum_of_16(sums) * share);
    for (int o = 0; o < width; o += 16)
      UNROLL for (int j = 0; j < VECTORS; j++) {
        const int at = o + j * LANES;
        const floats x = first_lanes(load(row + at) - mean, width - at);
        store(normal + at, x);
        ADD(squares, x, x);
      }
    scales[b] = sum_of_16(squares);
  }
  for (int b = 0; b < count; b += LANES)
    store(scales + b, broadcast(1.0f) / square_root(fmadd(load(scales + b), broadcast(share), broadcast(1e-5f))));
  for (int b = 0; b < count; b++)
    for (float *at = mlp->normal[layer] + b * room, *end = at + width; at < end; at += LANES)
      store(at, load(at) * broadcast(scales[b]));
}

// The gradients `d_outputs` of what `mlp_normalise` gives -> those of what it takes.
static void mlp_normalise_backward(const struct mlp *mlp, int layer, int count) {
  const int room = mlp->layout.room[layer], width = mlp->layout.outputs[layer];
  const float share = 1.0f / (float)width;
  for (int b = 0; b < count; b++) {
    const float *normal = mlp->normal[layer] + b * room;
    float *row = mlp->d_outputs[layer] + b * room;
    floats sums[VECTORS] = {0}, products[VECTORS] = {0};
    for (int o = 0; o < width; o += 16)
      UNROLL for (int j = 0; j < VECTORS; j++) {
        const int at = o + j * LANES;
        const floats d = first_lanes(load(row + at), width - at);
        sums[j] += d;
        ADD(products, d, load(normal + at));
      }
    const floats mean = broadcast(sum_of_16(sums) * share), slope = broadcast(-sum_of_16(products) * share);
    const floats scale = broadcast(mlp->scales[layer][b]);
    for (int o = 0; o < width; o += LANES)
      store(row + o, fmadd(load(normal + o), slope, load(row + o) - mean) * scale);
  }
}

// NaN stays NaN.
static void mlp_activate(const struct mlp *mlp, int layer, int count) {
  const int room = mlp->layout.room[layer], width = mlp->layout.outputs[layer];
  for (int b = 0; b < count; b++) {
    float *row = mlp->outputs[layer] + b * room, *slopes = mlp->slopes[layer] + b * room;
    const float *before = mlp->normal[layer] ? mlp->normal[layer] + b * room : row;
    switch (mlp->task->activation) {
      case MLP_RELU:
        for (int o = 0; o < width; o += LANES) {
          const floats x = load(before + o);
          store(row + o, chosen(greater((floats){0}, x), (floats){0}, x));
        }
        break;
      case MLP_TANH:
        for (int o = 0; o < width; o += LANES) {
          floats slope;
          store(row + o, tanh_and_slope(load(before + o), &slope));
          store(slopes + o, slope);
        }
        break;
      case MLP_GELU:
        for (int o = 0; o < width; o += LANES) {
          floats slope;
          store(row + o, gelu_and_slope(load(before + o), &slope));
          store(slopes + o, slope);
        }
        break;
    }
  }
}

// The logits of the images that are `inputs`.
static void mlp_forward(const struct mlp *mlp, int count) {
  const struct mlp_layout *layout = &mlp->layout;
  for (int l = 0; l < layout->layers; l++) {
    const struct product layer = {
        .a = l ? mlp->outputs[l - 1] : mlp->inputs,
        .b = mlp->weights + layout->weight[l],
        .bias = mlp->weights + layout->bias[l],
        .out = mlp->outputs[l],
        .rows = count,
        .depth = layout->inputs[l],
        .columns = layout->outputs[l],
        .a_stride = l ? layout->room[l - 1] : mlp->input_room,
        .b_stride = layout->outputs[l],
        .out_stride = layout->room[l],
    };
    layer_products(&layer);
    if (l == layout->layers - 1) break;
    if (mlp->task->normalised) mlp_normalise(mlp, l, count);
    mlp_activate(mlp, l, count);
  }
}

// Cross-entropy of each of the images of a chunk, a lane each, into `losses`. With `factors` (MLP_CHUNK,): the gradient
// of the sum of each loss times its factor into `d_outputs` of the last layer.
KEEP_OUT void mlp_cross_entropy(const struct mlp *mlp, int count, const uint8_t *labels, const float *factors,
                                float *losses) {
  const int last = mlp->layout.layers - 1, classes = mlp->layout.outputs[last], room = mlp->layout.room[last];
  const float *logits = mlp->outputs[last];
  float *d_logits = mlp->d_outputs[last];
  for (int b = 0; b < count; b += LANES) {
    float own[LANES] = {0};  // logits of the labels
    for (int i = 0; i < LANES && b + i < count; i++) own[i] = logits[(b + i) * room + labels[b + i]];
    for (int k = 0; k < classes; k += LANES) {
      floats r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = load(logits + (b + i < count ? b + i : count - 1) * room + k);
      transpose(r);
      UNROLL for (int i = 0; i < LANES; i++) store(mlp->by_class + (k + i) * LANES, r[i]);
    }
    floats largest = load(mlp->by_class), sum = {0};
    for (int k = 1; k < classes; k++) {
      const floats x = load(mlp->by_class + k * LANES);
      largest = chosen(greater(x, largest), x, largest);
    }
    for (int k = 0; k < classes; k++) {
      const floats e = exps_of(load(mlp->by_class + k * LANES) - largest);
      store(mlp->by_class + k * LANES, e);
      sum += e;
    }
    store(losses + b, logs_of(sum) - (load(own) - largest));
    if (!factors) continue;
    const floats scale = load(factors + b) / sum;
    for (int k = 0; k < classes; k += LANES) {
      floats r[LANES];
      UNROLL for (int i = 0; i < LANES; i++) r[i] = load(mlp->by_class + (k + i) * LANES) * scale;
      transpose(r);
      UNROLL for (int i = 0; i < LANES; i++) store(d_logits + (b + i) * room + k, r[i]);
    }
    for (int i = 0; i < LANES && b + i < count; i++) d_logits[(b + i) * room + labels[b + i]] -= factors[b + i];
  }
}

// Once per mini-batch.
static void mlp_prepare_backward(const struct mlp *mlp) {
  const struct mlp_layout *layout = &mlp->layout;
  for (int l = 1; l < layout->layers; l++)
    transpose_matrix(mlp->weights + layout->weight[l], layout->inputs[l], layout->outputs[l], mlp->by_output[l]);
}

// Gradients of a layer's weights and biases; `add`: to those of earlier chunks.
static void mlp_layer_gradient(const struct mlp *mlp, int l, int count, int add) {
  const struct mlp_layout *layout = &mlp->layout;
  const struct product weights = {
      .a = l ? mlp->outputs[l - 1] : mlp->inputs,
      .b = mlp->d_outputs[l],
      .out = mlp->gradient + layout->weight[l],
      .rows = layout->inputs[l],
      .depth = count,
      .columns = layout->outputs[l],
      .a_stride = l ? layout->room[l - 1] : mlp->input_room,
      .b_stride = layout->room[l],
      .out_stride = layout->outputs[l],
  };
  if (add) more_gradient_products(&weights);
  else first_gradient_products(&weights);
  float *bias = mlp->gradient + layout->bias[l];  // after the weights, whose last row may reach into it
  for (int o = 0; o < layout->outputs[l]; o += LANES) {
    floats sum = add ? load(bias + o) : (floats){0};
    for (int b = 0; b < count; b++) sum += load(mlp->d_outputs[l] + b * layout->room[l] + o);
    store(bias + o, first_lanes(sum, layout->outputs[l] - o));
  }
}

// d_outputs of the layer before, from those of a layer.
static void mlp_layer_inputs(const struct mlp *mlp, int l, int count) {
  const struct mlp_layout *layout = &mlp->layout;
  const int room = layout->room[l - 1];
  const struct product inputs = {
      .a = mlp->d_outputs[l],
      .b = mlp->by_output[l],
      .out = mlp->d_outputs[l - 1],
      .rows = count,
      .depth = layout->outputs[l],
      .columns = layout->inputs[l],
      .a_stride = layout->room[l],
      .b_stride = room,
      .out_stride = room,
  };
  layer_products(&inputs);
  for (int b = 0; b < count; b++)
    for (int o = b * room; o < b * room + layout->inputs[l]; o += LANES) {
      float *at = mlp->d_outputs[l - 1] + o;
      const floats d = load(at), y = load(mlp->outputs[l - 1] + o);
      switch (mlp->task->activation) {
        case MLP_RELU: store(at, chosen(greater(y, (floats){0}), d, (floats){0})); break;
        default: store(at, d * load(mlp->slopes[l - 1] + o)); break;
      }
    }
  if (mlp->task->normalised) mlp_normalise_backward(mlp, l - 1, count);
}

static void mlp_backward(const struct mlp *mlp, int count, int add) {
  for (int l = mlp->layout.layers - 1; l >= 0; l--) {
    mlp_layer_gradient(mlp, l, count, add);
    if (l > 0) mlp_layer_inputs(mlp, l, count);
  }
}

static void mlp_load(const struct mlp *mlp, const struct qan_examples *examples, const int64_t *indices, int count,
                     uint8_t *labels) {
  for (int b = 0; b < count; b++) {
    const uint8_t *image = examples->images + examples->chosen[indices[b]] * mlp->task->inputs;
    mlp_inputs(mlp->task, image, mlp->inputs + b * mlp->input_room);
    labels[b] = examples->labels[indices[b]];
  }
}

// The indices of an epoch's images, of which some are drawn ahead: a block costs as much as a few.
struct draws {
  struct order order;
  int64_t first, count;  // places that `indices` are of
  int64_t indices[2 * ORDER_BLOCK];
};

// The indices at `count` <= MLP_CHUNK places from `first` on.
static const int64_t *draw_images(struct draws *draws, int64_t first, int64_t count) {
  enum { MOST = 2 * ORDER_BLOCK };
  if (first < draws->first || first + count > draws->first + draws->count) {
    const int64_t left = draws->order.total - first;
    draws->first = first;
    draws->count = left < MOST ? left : MOST;
    order_from(&draws->order, first, draws->count, draws->indices);
  }
  return draws->indices + (first - draws->first);
}

static inline float weight_of(const struct qan_mlp_task *task, uint8_t label) {
  return task->class_weights ? task->class_weights[label] : 1.0f;
}

// Gradients of a mini-batch's loss; returns the loss. The gradients are complete where the loss is finite. The images are
// those that are `given`, or where none are those of the epoch from `first` on. `each`: NULL, or the losses of the images.
static float mlp_gradients(const struct mlp *mlp, struct draws *draws, int64_t first, const int64_t *given, float *each) {
  const struct qan_mlp_task *task = mlp->task;
  const float factor = task->loss_scale / (float)task->batch;
  double loss = 0;
  mlp_prepare_backward(mlp);
  for (int64_t done = 0; done < task->batch; done += MLP_CHUNK) {
    const int count = task->batch - done < MLP_CHUNK ? (int)(task->batch - done) : MLP_CHUNK;
    uint8_t labels[MLP_CHUNK];
    float losses[MLP_CHUNK], factors[MLP_CHUNK] = {0};
    const int64_t *indices = given ? given + done : draw_images(draws, first + done, count);
    mlp_load(mlp, &task->train, indices, count, labels);
    for (int b = 0; b < count; b++) factors[b] = factor * weight_of(task, labels[b]);
    mlp_forward(mlp, count);
    mlp_cross_entropy(mlp, count, labels, factors, losses);
    for (int b = 0; b < count; b++) loss += (double)losses[b] * (double)weight_of(task, labels[b]);
    if (each) memcpy(each + done, losses, (size_t)count * sizeof(float));
    if (loss - loss != 0) break;
    mlp_backward(mlp, count, done > 0);
  }
  return (float)(loss / (double)task->batch * (double)task->loss_scale);
}

static void evaluate_mlp(const struct qan_mlp_evaluation *job, int64_t row, struct mlp_space *space) {
  const struct mlp mlp = mlp_of(&job->tasks[row], of_network(&job->weights, row), space);
  const struct qan_examples *examples = &job->examples[row];
  const int last = mlp.layout.layers - 1;
  double loss = 0;
  int64_t correct = 0;
  for (int64_t done = 0; done < examples->count; done += MLP_CHUNK) {
    const int count = examples->count - done < MLP_CHUNK ? (int)(examples->count - done) : MLP_CHUNK;
    int64_t indices[MLP_CHUNK];
    uint8_t labels[MLP_CHUNK];
    float losses[MLP_CHUNK];
    for (int b = 0; b < count; b++) indices[b] = done + b;
    mlp_load(&mlp, examples, indices, count, labels);
    mlp_forward(&mlp, count);
    mlp_cross_entropy(&mlp, count, labels, 0, losses);
    if (job->each) memcpy(job->each + row * job->room + done, losses, (size_t)count * sizeof(float));
    for (int b = 0; b < count; b++) {
      loss += (double)losses[b];
      correct += largest_of(mlp.outputs[last] + b * mlp.layout.room[last], mlp.layout.outputs[last]) == labels[b];
    }
  }
  job->loss[row] = (float)(loss / (double)examples->count);
  job->accuracy[row] = (float)((double)correct / (double)examples->count);
}
