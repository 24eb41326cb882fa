// The functions of mlp.h: what is checked, who takes which row.
#include "mlp.h"

#include "engine.h"
#include "random_streams.h"

static int within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static int is_shape(const struct qan_mlp_task *task) {
  if (!within(task->inputs, MLP_MIN_INPUTS, MLP_MAX_INPUTS) || !within(task->classes, 2, MAX_CLASSES) ||
      !within(task->hidden, 1, MLP_HIDDEN))
    return 0;
  for (int l = 0; l < task->hidden; l++)
    if (!within(task->widths[l], MLP_MIN_WIDTH, MLP_MAX_WIDTH)) return 0;
  return within(task->activation, MLP_RELU, MLP_GELU) && within(task->normalised, 0, 1);
}

static int are_examples(const struct qan_examples *examples) {
  return examples->images && examples->chosen && examples->labels && within(examples->count, 1, INT32_MAX);
}

static int are_indices(const struct qan_mlp_training *job, int64_t row) {
  const struct qan_mlp_task *task = &job->tasks[row];
  for (int64_t t = 0; t < job->counts[row]; t++) {
    const int64_t *indices = job->indices + (row * job->most + t) * job->room;
    for (int64_t b = 0; b < task->batch; b++)
      if (!within(indices[b], 0, task->train.count - 1)) return 0;
  }
  return 1;
}

static int32_t check_task(const struct qan_mlp_training *job, int64_t row) {
  const struct qan_mlp_task *task = &job->tasks[row];
  if (job->counts[row] < 0 || job->counts[row] > job->most) return QAN_WRONG_COUNT;
  if (job->counts[row] == 0) return QAN_OK;
  const int right = is_shape(task) && are_examples(&task->train) && within(task->optimizer, SGD, ADAMW) &&
                    within(task->batch, 1, MLP_MAX_BATCH) && task->batch <= task->train.count;
  if (!right) return QAN_WRONG_TASK;
  const int64_t size = mlp_layout_of(task).size, slots = task->optimizer == SGD ? 0 : task->optimizer == ADAMW ? 2 : 1;
  if (job->weights.stride < size) return QAN_WRONG_TASK;
  for (int slot = 0; slot < slots; slot++)
    if (!job->slots[slot].at || job->slots[slot].stride < size) return QAN_WRONG_TASK;
  if ((job->indices || job->each) && job->room < task->batch) return QAN_WRONG_TASK;
  if (job->indices && !are_indices(job, row)) return QAN_WRONG_INDEX;
  return job->clock[row] < 0 || job->clock[row] > INT64_MAX - 1 - job->most ? QAN_WRONG_CLOCK : QAN_OK;
}

int64_t qan_mlp_size(const struct qan_mlp_task *task) { return is_shape(task) ? mlp_layout_of(task).size : 0; }

int64_t qan_mlp_workspace_size(void) { return (int64_t)sizeof(struct mlp_space); }

int32_t qan_begin_mlp_training(struct qan_mlp_training *job) {
  int32_t error = check_work(&job->work);
  for (int64_t entry = 0; entry < job->work.count && !error; entry++) error = check_task(job, row_of(&job->work, entry));
  job->work.next = 0;
  return error;
}

int32_t qan_begin_mlp_evaluation(struct qan_mlp_evaluation *job) {
  int32_t error = check_work(&job->work);
  for (int64_t entry = 0; entry < job->work.count && !error; entry++) {
    const int64_t row = row_of(&job->work, entry);
    if (!is_shape(&job->tasks[row]) || !are_examples(&job->examples[row]) ||
        job->weights.stride < mlp_layout_of(&job->tasks[row]).size ||
        (job->each && job->room < job->examples[row].count))
      error = QAN_WRONG_TASK;
  }
  job->work.next = 0;
  return error;
}

void qan_train_mlp(struct qan_mlp_training *job, void *workspace) {
  const struct engine *engine = engine_of(job->work.instruction_set);
  for (int64_t n = take(&job->work); n >= 0; n = take(&job->work)) engine->train_mlp(job, n, workspace);
}

void qan_evaluate_mlp(struct qan_mlp_evaluation *job, void *workspace) {
  const struct engine *engine = engine_of(job->work.instruction_set);
  for (int64_t n = take(&job->work); n >= 0; n = take(&job->work)) engine->evaluate_mlp(job, n, workspace);
}

void qan_initialise_mlp(const struct qan_mlp_task *task, int64_t seed, double scale, float *weights) {
  const struct mlp_layout layout = mlp_layout_of(task);
  memset(weights, 0, (size_t)layout.size * sizeof(float));
  for (int l = 0; l < layout.layers; l++) {
    const int rectified = l < layout.layers - 1 && task->activation != MLP_TANH;
    const double deviation = scale * (rectified ? 1.4142135623730951 : 1.0) / __builtin_sqrt((double)layout.inputs[l]);
    const uint64_t stream = stream_of(seed, WEIGHTS_PURPOSE, 2 * l);
    const int64_t inputs = layout.inputs[l], outputs = layout.outputs[l];
    for (int64_t o = 0; o < outputs; o++)
      for (int64_t i = 0; i < inputs; i++)
        weights[layout.weight[l] + i * outputs + o] =
            (float)(normal_at(stream, o * inputs + i, inputs * outputs) * deviation);
  }
}

void qan_shuffled(int64_t seed, int64_t epoch, int64_t first, int64_t count, int64_t total, int64_t *indices) {
  const struct order order = order_of(seed, SHUFFLED_PURPOSE, epoch, total);
  order_from(&order, first, count, indices);
}

// `count` images of a class of a row, of which `used` have been drawn before.
static void draw_class(const struct qan_class_draws *draws, int64_t row, int64_t class, const int32_t *members,
                       int64_t size, int64_t used, int64_t count, int64_t *indices) {
  while (count > 0) {
    const int64_t round = used / size, place = used % size, left = size - place, taken = count < left ? count : left;
    const struct order order = order_of(draws->seeds[row], BY_CLASS_PURPOSE, round * draws->classes + class, size);
    for (int64_t i = 0; i < taken; i++) indices[i] = members[order_at(&order, place + i)];
    used += taken, count -= taken, indices += taken;
  }
}

void qan_draw_classes(const struct qan_class_draws *draws) {
  for (int64_t row = 0; row < draws->rows; row++) {
    const int64_t *sizes = draws->sizes + row * draws->classes;
    int64_t *used = draws->used + row * draws->classes;
    for (int64_t t = 0; t < draws->batches; t++) {
      const int64_t *counts = draws->counts + (row * draws->batches + t) * draws->classes;
      const int32_t *members = draws->members + row * draws->most;
      int64_t *indices = draws->indices + (row * draws->batches + t) * draws->room;
      for (int64_t k = 0; k < draws->classes; members += sizes[k], indices += counts[k], k++) {
        draw_class(draws, row, k, members, sizes[k], used[k], counts[k], indices);
        used[k] += counts[k];
      }
    }
  }
}
