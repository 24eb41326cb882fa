// A row's mini-batches one after another: gradients, update, and what is measured of them.

// The memory of a row.
struct mlp_row {
  float *weights, *first, *second;              // slots; NULL where there are none
  float *previous_gradient, *start, *previous_displacement;  // NULL: nothing is measured
};

// Sums of products over the parameters: in 16 lanes, by place, within MLP_BLOCK of them, and in double over the blocks.
enum { MLP_BLOCK = 1024 };

// Of a mini-batch: gradient g, the one before, and update u.
enum { SUM_GG, SUM_GP, SUM_UU, SUM_GU, SUMS };

struct sums {
  floats lanes[SUMS][16 / LANES];
};

INLINE void add_products(struct sums *sums, int q, floats g, floats previous, floats u) {
  sums->lanes[SUM_GG][q] = fmadd(g, g, sums->lanes[SUM_GG][q]);
  sums->lanes[SUM_GP][q] = fmadd(g, previous, sums->lanes[SUM_GP][q]);
  sums->lanes[SUM_UU][q] = fmadd(u, u, sums->lanes[SUM_UU][q]);
  sums->lanes[SUM_GU][q] = fmadd(g, u, sums->lanes[SUM_GU][q]);
}

// Updates `size` floats, gaps included, in which everything is 0; returns 1 if all weights are finite afterwards.
INLINE int mlp_update_each(const struct mlp_row *memory, const float *gradient, int64_t size, const struct rule *numbers,
                           double totals[SUMS], const int optimizer, const int measured) {
  const struct mlp_row row = *memory;  // copies, because what is written might be what pointers point to
  const struct rule rule = *numbers;
  floats check = {0};
  for (int64_t begin = 0; begin < size; begin += MLP_BLOCK) {
    const int64_t end = begin + MLP_BLOCK < size ? begin + MLP_BLOCK : size;
    struct sums sums = {0};
    for (int64_t i = begin; i < end; i += 16) UNROLL for (int q = 0; q < 16 / LANES; q++) {
      const int64_t at = i + q * LANES;
      floats first = {0}, second = {0};
      if (optimizer != SGD) first = load(row.first + at);
      if (optimizer == ADAMW) second = load(row.second + at);
      const floats g = load(gradient + at), w = load(row.weights + at);
      const floats changed = updated(w, g, &first, &second, &rule, optimizer);
      if (optimizer != SGD) store(row.first + at, first);
      if (optimizer == ADAMW) store(row.second + at, second);
      store(row.weights + at, changed);
      check = fmadd(changed, (floats){0}, check);
      if (measured) {
        add_products(&sums, q, g, load(row.previous_gradient + at), changed - w);
        store(row.previous_gradient + at, g);
      }
    }
    if (measured)
      for (int s = 0; s < SUMS; s++) totals[s] += (double)sum_of_16(sums.lanes[s]);
  }
  for (int i = 0; i < LANES; i++)
    if (check[i] != 0) return 0;  // NaN is not equal to anything
  return 1;
}

KEEP_OUT int mlp_update(const struct mlp_row *row, const float *gradient, int64_t size, const struct rule *rule,
                        int optimizer) {
  switch (optimizer) {
    case SGD: return mlp_update_each(row, gradient, size, rule, 0, SGD, 0);
    case SGD_MOMENTUM: return mlp_update_each(row, gradient, size, rule, 0, SGD_MOMENTUM, 0);
    case SGD_NESTEROV: return mlp_update_each(row, gradient, size, rule, 0, SGD_NESTEROV, 0);
    default: return mlp_update_each(row, gradient, size, rule, 0, ADAMW, 0);
  }
}

KEEP_OUT int mlp_measured_update(const struct mlp_row *row, const float *gradient, int64_t size,
                                 const struct rule *rule, int optimizer, double totals[SUMS]) {
  switch (optimizer) {
    case SGD: return mlp_update_each(row, gradient, size, rule, totals, SGD, 1);
    case SGD_MOMENTUM: return mlp_update_each(row, gradient, size, rule, totals, SGD_MOMENTUM, 1);
    case SGD_NESTEROV: return mlp_update_each(row, gradient, size, rule, totals, SGD_NESTEROV, 1);
    default: return mlp_update_each(row, gradient, size, rule, totals, ADAMW, 1);
  }
}

// Sum of a[i] b[i], size a multiple of 16.
KEEP_OUT double dot_of(const float *a, const float *b, int64_t size) {
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += MLP_BLOCK) {
    const int64_t end = begin + MLP_BLOCK < size ? begin + MLP_BLOCK : size;
    floats lanes[16 / LANES] = {{0}};
    for (int64_t i = begin; i < end; i += 16) UNROLL for (int q = 0; q < 16 / LANES; q++)
        lanes[q] = fmadd(load(a + i + q * LANES), load(b + i + q * LANES), lanes[q]);
    total += (double)sum_of_16(lanes);
  }
  return total;
}

// --- networks of more than MLP_MEASURED parameters: every step-th of them is measured

static int64_t measured_step(const struct mlp_layout *layout) {
  return ((layout->parameters + MLP_MEASURED - 1) / MLP_MEASURED) | 1;
}

// Every step-th parameter, in their order in memory, from an array laid out like the weights; and 0 up to a multiple of
// 16 numbers. Returns how many numbers.
static int64_t sample(const struct mlp_layout *layout, const float *array, float *sampled) {
  const int64_t step = measured_step(layout);
  int64_t count = 0, next = 0;  // places from the beginning of a parameter
  for (int t = 0; t < 2 * layout->layers; t++) {
    const int l = t / 2;
    const float *at = array + (t % 2 ? layout->bias[l] : layout->weight[l]);
    const int64_t length = t % 2 ? layout->outputs[l] : (int64_t)layout->inputs[l] * layout->outputs[l];
    for (; next < length; next += step) sampled[count++] = at[next];
    next -= length;
  }
  while (count % 16) sampled[count++] = 0;
  return count;
}

static int mlp_sampled_update(const struct mlp *mlp, const struct mlp_row *row, const struct rule *rule,
                              double totals[SUMS], struct mlp_space *space) {
  const int64_t step = measured_step(&mlp->layout), size = mlp->layout.size;
  float *before = space->sampled[0], *gradient = space->sampled[1], *other = space->sampled[2];
  sample(&mlp->layout, row->weights, before);
  const int64_t count = sample(&mlp->layout, mlp->gradient, gradient);
  sample(&mlp->layout, row->previous_gradient, other);
  totals[SUM_GG] = dot_of(gradient, gradient, count) * (double)step;
  totals[SUM_GP] = dot_of(gradient, other, count) * (double)step;
  memcpy(row->previous_gradient, mlp->gradient, (size_t)size * sizeof(float));
  const int finite = mlp_update(row, mlp->gradient, size, rule, mlp->task->optimizer);
  sample(&mlp->layout, row->weights, other);
  for (int64_t i = 0; i < count; i++) before[i] = other[i] - before[i];
  totals[SUM_UU] = dot_of(before, before, count) * (double)step;
  totals[SUM_GU] = dot_of(gradient, before, count) * (double)step;
  return finite;
}

// Product of two arrays laid out like the weights, over the parameters that are measured.
static double mlp_dot(const struct mlp_layout *layout, const float *a, const float *b, struct mlp_space *space) {
  const int64_t step = measured_step(layout);
  if (step == 1) return dot_of(a, b, layout->size);
  sample(layout, a, space->sampled[0]);
  const int64_t count = sample(layout, b, space->sampled[1]);
  return dot_of(space->sampled[0], space->sampled[1], count) * (double)step;
}

// --- what is measured of a call

static double mlp_cosine(double product, double square1, double square2) {
  return square1 > 0 && square2 > 0 ? product / (__builtin_sqrt(square1) * __builtin_sqrt(square2)) : 0;
}

struct mlp_sums {
  double gradient_norm, gradient_cosine, update_norm, decrease;  // sums over mini-batches
  double previous;                                               // square of the last gradient's norm
};

static void measure_batch(struct mlp_sums *sum, const double totals[SUMS]) {
  sum->gradient_norm += __builtin_sqrt(totals[SUM_GG]);
  sum->gradient_cosine += mlp_cosine(totals[SUM_GP], totals[SUM_GG], sum->previous);
  sum->update_norm += __builtin_sqrt(totals[SUM_UU]);
  sum->decrease -= totals[SUM_GU];
  sum->previous = totals[SUM_GG];
}

// After `count` mini-batches. A row that is not finite has NaN for everything.
static void measure_row(const struct mlp *mlp, const struct mlp_row *row, const struct mlp_sums *sum, int64_t count,
                        int finite, float *out, struct mlp_space *space) {
  const struct mlp_layout *layout = &mlp->layout;
  float *displacement = mlp->gradient;  // which is no longer needed
  for (int64_t i = 0; i < layout->size; i += LANES)
    store(displacement + i, load(row->weights + i) - load(row->start + i));
  const double square = mlp_dot(layout, displacement, displacement, space);
  const double before = mlp_dot(layout, row->previous_displacement, row->previous_displacement, space);
  const double product = mlp_dot(layout, displacement, row->previous_displacement, space);
  memcpy(row->previous_displacement, displacement, (size_t)layout->size * sizeof(float));
  const double values[MEASUREMENTS] = {
      [GRADIENT_NORM] = sum->gradient_norm / (double)count,
      [GRADIENT_COSINE] = sum->gradient_cosine / (double)count,
      [UPDATE_NORM] = sum->update_norm / (double)count,
      [PREDICTED_DECREASE] = sum->decrease / (double)count,
      [DISPLACEMENT] = __builtin_sqrt(square),
      [DISPLACEMENT_COSINE] = mlp_cosine(product, square, before),
      [WEIGHT_NORM] = __builtin_sqrt(mlp_dot(layout, row->weights, row->weights, space)),
  };
  for (int i = 0; i < MEASUREMENTS; i++) out[i] = finite ? (float)values[i] : __builtin_nanf("");
}

// --- a row

// The gaps between the parameters become 0, so that what passes over them need not know of them.
static void clear_gaps(const struct mlp_layout *layout, float *array) {
  if (!array) return;
  for (int l = 0; l < layout->layers; l++) {
    const int64_t ends[2] = {layout->weight[l] + (int64_t)layout->inputs[l] * layout->outputs[l],
                             layout->bias[l] + layout->outputs[l]};
    for (int t = 0; t < 2; t++)
      for (int64_t i = ends[t]; i % 16; i++) array[i] = 0;
  }
}

static struct mlp_row mlp_row_of(const struct qan_mlp_training *job, const struct mlp *mlp, int64_t row) {
  const int optimizer = mlp->task->optimizer, measured = job->measured != 0;
  const struct mlp_row memory = {
      .weights = of_network(&job->weights, row),
      .first = optimizer != SGD ? of_network(&job->slots[0], row) : 0,
      .second = optimizer == ADAMW ? of_network(&job->slots[1], row) : 0,
      .previous_gradient = measured ? of_network(&job->previous_gradient, row) : 0,
      .start = measured ? of_network(&job->start, row) : 0,
      .previous_displacement = measured ? of_network(&job->previous_displacement, row) : 0,
  };
  float *const arrays[] = {memory.weights, memory.first, memory.second, memory.previous_gradient,
                           memory.previous_displacement, mlp->gradient};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) clear_gaps(&mlp->layout, arrays[i]);
  return memory;
}

// Mini-batch t of the call; returns 1 if loss and weights are finite.
static int train_mlp_batch(const struct qan_mlp_training *job, const struct mlp *mlp, const struct mlp_row *memory,
                           int64_t row, int64_t t, struct draws *draws, float *loss, struct mlp_sums *sum,
                           struct mlp_space *space) {
  const struct qan_mlp_task *task = mlp->task;
  const int64_t per_epoch = task->train.count / task->batch, clock = job->clock[row];
  const int64_t number = row * job->most + t;
  const int64_t *given = job->indices ? job->indices + number * job->room : 0;
  float *each = job->each ? job->each + number * job->room : 0;
  *loss = mlp_gradients(mlp, draws, clock % per_epoch * task->batch, given, each);
  if (*loss != *loss) *loss = __builtin_nanf("");  // of one sign on every machine
  if (*loss - *loss != 0) return 0;
  const struct rule rule = rule_with(task->optimizer, job->rates[number], job->momentum[row], job->weight_decay[row], task->beta2,
                                     task->epsilon, clock);
  int finite;
  if (!job->measured) {
    finite = mlp_update(memory, mlp->gradient, mlp->layout.size, &rule, task->optimizer);
  } else {
    double totals[SUMS] = {0};
    finite = measured_step(&mlp->layout) > 1
                 ? mlp_sampled_update(mlp, memory, &rule, totals, space)
                 : mlp_measured_update(memory, mlp->gradient, mlp->layout.size, &rule, task->optimizer, totals);
    measure_batch(sum, totals);
  }
  job->clock[row] = clock + 1;
  return finite;
}

static void train_mlp(const struct qan_mlp_training *job, int64_t row, struct mlp_space *space) {
  const int64_t count = job->counts[row];
  float *losses = job->losses + row * job->most;
  for (int64_t t = count; t < job->most; t++) losses[t] = 0;
  if (count == 0) {
    if (job->measured) memset(job->measured + row * MEASUREMENTS, 0, MEASUREMENTS * sizeof(float));
    return;
  }
  const struct mlp mlp = mlp_of(&job->tasks[row], of_network(&job->weights, row), space);
  const struct mlp_row memory = mlp_row_of(job, &mlp, row);
  const struct qan_mlp_task *task = mlp.task;
  const int64_t per_epoch = task->train.count / task->batch;
  struct mlp_sums sum = {0};
  if (job->measured) {
    memcpy(memory.start, memory.weights, (size_t)mlp.layout.size * sizeof(float));
    sum.previous = mlp_dot(&mlp.layout, memory.previous_gradient, memory.previous_gradient, space);
  }
  int finite = job->finite[row];
  struct draws draws;
  int64_t epoch = -1;
  for (int64_t t = 0; t < count; t++) {
    if (!finite) {
      losses[t] = __builtin_nanf("");
      continue;
    }
    if (job->clock[row] / per_epoch != epoch) {
      epoch = job->clock[row] / per_epoch;
      draws.order = order_of(task->seed, SHUFFLED_PURPOSE, epoch, task->train.count);
      draws.first = draws.count = 0;
    }
    finite = train_mlp_batch(job, &mlp, &memory, row, t, &draws, losses + t, &sum, space);
  }
  job->finite[row] = (uint8_t)finite;
  if (job->measured)
    measure_row(&mlp, &memory, &sum, count, finite, job->measured + row * MEASUREMENTS, space);
}
