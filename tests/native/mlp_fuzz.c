// Calls with made rows, right and wrong, for a build with sanitizers. Wrong rows, tasks, counts and clocks must be refused
// with nothing written; numbers of any kind must do no harm. Arguments: how many calls, the seed, the bit of the instruction
// set. Prints how many were refused; ends with status 1 at the first wrong answer.
#include "mlp_made.h"

#include "fuzzing.h"

enum { MOST_ROWS = 4, MOST_BATCHES = 3, CALLS = 40 };

static int64_t outside(int64_t low, int64_t high) {
  const int64_t values[] = {low - 1, high + 1, INT64_MAX, INT64_MIN, high + 1 + (int64_t)draw(1000)};
  return values[draw(sizeof values / sizeof *values)];
}

// The images of the mini-batches are given, or the losses of images asked for, or both, or neither.
static void give_indices(struct qan_mlp_training *job) {
  const size_t slots = (size_t)(job->work.networks * job->most);
  for (int64_t i = 0; i < job->work.networks; i++)
    if (job->tasks[i].batch > job->room) job->room = job->tasks[i].batch;
  job->room += (int64_t)draw(3);
  if (draw(2)) job->each = room(slots * (size_t)job->room, sizeof *job->each);
  if (draw(2)) return;
  int64_t *indices = room(slots * (size_t)job->room, sizeof *indices);
  for (int64_t i = 0; i < (int64_t)slots; i++) {
    const struct qan_mlp_task *task = &job->tasks[i / job->most];
    for (int64_t b = 0; b < job->room; b++)
      indices[i * job->room + b] = b < task->batch ? (int64_t)draw((uint64_t)task->train.count) : INT64_MIN;
  }
  job->indices = indices;
}

// Some numbers become not finite, huge, or subnormal.
static void spoil_numbers(struct qan_mlp_training *job) {
  const uint64_t n = (uint64_t)job->work.networks, floats = n * (uint64_t)job->weights.stride;
  const struct qan_memory *const memories[] = {&job->slots[0], &job->slots[1], &job->previous_gradient,
                                               &job->previous_displacement};
  for (uint64_t i = draw(4); i > 0; i--) job->weights.at[draw(floats)] = odd_float();
  for (int i = 0; i < 4; i++)
    if (memories[i]->at && draw(4) == 0) memories[i]->at[draw(floats)] = odd_float();
  double *const values[] = {(double *)job->momentum, (double *)job->weight_decay};
  for (int i = 0; i < 2; i++)
    if (draw(6) == 0) values[i][draw(n)] = (double)odd_float();
  if (draw(4) == 0) ((double *)job->rates)[draw(n * (uint64_t)job->most)] = (double)odd_float();
  struct qan_mlp_task *task = (struct qan_mlp_task *)&job->tasks[draw(n)];
  float *const settings[] = {&task->scale, &task->shift, &task->loss_scale};
  if (draw(3) == 0) *settings[draw(3)] = odd_float();
}

// Every second row's classes have weights.
static void give_weights(const struct qan_mlp_training *job) {
  for (int64_t row = 0; row < job->work.networks; row++) {
    struct qan_mlp_task *task = (struct qan_mlp_task *)&job->tasks[row];
    if (draw(2)) continue;
    float *weights = room((size_t)task->classes, sizeof *weights);
    for (int64_t k = 0; k < task->classes; k++) weights[k] = 1.5f + draw_unit();
    task->class_weights = weights;
  }
}

// What `begin` answers where something of all rows is wrong: of rows without mini-batches it is not looked at.
static int32_t of_all_rows(const struct qan_mlp_training *job) {
  for (int64_t i = 0; i < job->work.networks; i++)
    if (job->counts[i]) return QAN_WRONG_TASK;
  return QAN_OK;
}

// Where an index of a row is wrong that `begin` must look at, it is put right after the call.
static int64_t *wrong_index, right_index;

// One thing of a row becomes wrong, or nothing; returns what `begin` must answer.
static int32_t spoil_row(struct qan_mlp_training *job, int64_t row) {
  struct qan_mlp_task *task = (struct qan_mlp_task *)&job->tasks[row];
  int64_t *count = (int64_t *)&job->counts[row];
  const int32_t refused = *count ? QAN_WRONG_TASK : QAN_OK;  // of a row without mini-batches the task is not looked at
  switch (draw(24)) {
    case 0: *count = outside(0, job->most); return QAN_WRONG_COUNT;
    case 1: job->clock[row] = draw(2) ? -1 : INT64_MAX - 1; return *count ? QAN_WRONG_CLOCK : QAN_OK;
    case 2: task->inputs = outside(MLP_MIN_INPUTS, MLP_MAX_INPUTS); return refused;
    case 3: task->classes = outside(2, MAX_CLASSES); return refused;
    case 4: task->hidden = outside(1, MLP_HIDDEN); return refused;
    case 5: task->widths[draw((uint64_t)task->hidden)] = outside(MLP_MIN_WIDTH, MLP_MAX_WIDTH); return refused;
    case 6: task->batch = draw(2) ? outside(1, MLP_MAX_BATCH) : task->train.count + 1; return refused;
    case 7: task->activation = draw(2) ? 3 : -1; return refused;
    case 8: task->optimizer = draw(2) ? GRADIENTS_ONLY : ADAMW + 1; return refused;
    case 9: task->train.count = outside(1, INT32_MAX); return refused;
    case 10: task->train.images = 0; return refused;
    case 11: job->work.instruction_set = (int32_t)draw(2) * 8; return QAN_NO_ENGINE;
    case 12: job->weights.stride = 15; return of_all_rows(job);
    case 13: job->room = draw(2) ? 0 : INT64_MIN; return job->indices || job->each ? of_all_rows(job) : QAN_OK;
    case 14:
      if (!job->indices || !*count) return QAN_OK;
      wrong_index = (int64_t *)job->indices + (row * job->most + (int64_t)draw((uint64_t)*count)) * job->room +
                    (int64_t)draw((uint64_t)task->batch);
      right_index = *wrong_index;
      *wrong_index = outside(0, task->train.count - 1);
      return QAN_WRONG_INDEX;
    case 15: task->normalised = draw(2) ? 2 : -1; return refused;
    default: return QAN_OK;
  }
}

static int is_finite(float x) { return x - x == 0; }

static void check_row(const struct qan_mlp_training *job, int64_t row, int64_t before) {
  const float *weights = job->weights.at + row * job->weights.stride, *losses = job->losses + row * job->most;
  const int64_t count = job->counts[row], done = job->clock[row] - before;
  if (done < 0 || done > count) wrong("the clock");
  if (job->finite[row] && done < count) wrong("a finite row that was not trained");
  for (int64_t t = 0; t < job->most; t++) {
    if (t >= count && losses[t] != 0) wrong("a loss behind the last one");
    if (t < count && job->finite[row] && !is_finite(losses[t])) wrong("a finite row with a loss that is not");
  }
  if (!job->finite[row] || !count) return;
  for (int64_t t = 0; job->each && t < count; t++)
    for (int64_t b = 0; b < job->tasks[row].batch; b++)
      if (!is_finite(job->each[(row * job->most + t) * job->room + b])) wrong("a finite row with an image that is not");
  const struct mlp_layout layout = mlp_layout_of(&job->tasks[row]);
  for (int l = 0; l < layout.layers; l++) {
    for (int64_t i = 0; i < (int64_t)layout.inputs[l] * layout.outputs[l]; i++)
      if (!is_finite(weights[layout.weight[l] + i])) wrong("a finite row with a weight that is not");
    for (int64_t i = 0; i < layout.outputs[l]; i++)
      if (!is_finite(weights[layout.bias[l] + i])) wrong("a finite row with a bias that is not");
  }
}

static void one_evaluation(const struct qan_mlp_training *job, void *space) {
  struct qan_examples examples[MOST_ROWS];
  float loss[MOST_ROWS], accuracy[MOST_ROWS];
  int64_t most = 0;
  for (int64_t i = 0; i < job->work.networks; i++) {
    examples[i] = job->tasks[i].train;
    if (examples[i].count > most) most = examples[i].count;
  }
  float *each = draw(2) ? room((size_t)(job->work.networks * most), sizeof *each) : NULL;
  const int64_t little = most - 1;
  struct qan_mlp_evaluation evaluation = {job->work, job->tasks, examples, job->weights, loss, accuracy, little, each};
  if (each && qan_begin_mlp_evaluation(&evaluation) != QAN_WRONG_TASK) wrong("an evaluation without room");
  evaluation.room = most;
  if (qan_begin_mlp_evaluation(&evaluation)) wrong("an evaluation that was refused");
  qan_evaluate_mlp(&evaluation, space);
  free(each);
  for (int64_t i = 0; i < job->work.networks; i++)
    if (!(accuracy[i] >= 0 && accuracy[i] <= 1)) wrong("accuracy");
}

// Returns 1 if the call was refused. The job and its tasks are as before afterwards.
static int one_call(struct qan_mlp_training *job, void *space) {
  const int64_t n = job->work.networks, row = (int64_t)draw((uint64_t)n);
  struct qan_mlp_task tasks[MOST_ROWS];
  const struct qan_mlp_training own = *job;
  int64_t before[MOST_ROWS];
  memcpy(tasks, job->tasks, (size_t)n * sizeof *tasks);
  for (int64_t i = 0; i < n; i++) {
    job->clock[i] = (int64_t)(draw(4) ? draw(100) : draw(1 << 30));
    ((int64_t *)job->counts)[i] = between(0, job->most);
    job->finite[i] = draw(8) > 0;
  }
  job->losses[0] = -1;
  const int32_t expected = spoil_row(job, row);
  memcpy(before, job->clock, (size_t)n * sizeof *before);
  if (draw(2)) spoil_numbers(job);
  const float spoilt = job->weights.at[0];
  const int32_t error = qan_begin_mlp_training(job);
  if (error != expected) wrong("another answer than expected");
  if (error) {
    if (job->losses[0] != -1 || memcmp(&spoilt, &job->weights.at[0], 4)) wrong("written before it was checked");
  } else {
    qan_train_mlp(job, space);
    for (int64_t i = 0; i < n; i++) check_row(job, i, before[i]);
  }
  memcpy((void *)own.tasks, tasks, (size_t)n * sizeof *tasks);
  *job = own;
  if (wrong_index) *wrong_index = right_index;
  wrong_index = NULL;
  one_evaluation(job, space);
  return error != 0;
}

// Mini-batches of classes: each image is of its class, in a round each of a class is drawn once, and nothing else is
// written.
static void one_draw(void) {
  enum { ROWS = 2, BATCHES = 4, CLASSES = 3, LARGEST = 5, ROOM = CLASSES * LARGEST + 2 };
  int64_t seeds[ROWS], counts[ROWS * BATCHES * CLASSES], sizes[ROWS * CLASSES], used[ROWS * CLASSES];
  int64_t *indices = room(ROWS * BATCHES * ROOM, sizeof *indices);
  int32_t *members = room(ROWS * CLASSES * LARGEST, sizeof *members);
  for (int64_t i = 0; i < ROWS * BATCHES * ROOM; i++) indices[i] = -1;
  for (int64_t i = 0; i < ROWS * CLASSES * LARGEST; i++) members[i] = (int32_t)(i % (CLASSES * LARGEST)) + 100;
  for (int64_t i = 0; i < ROWS; i++) seeds[i] = (int64_t)draw(UINT32_MAX) << 30;
  for (int64_t i = 0; i < ROWS * CLASSES; i++) {
    sizes[i] = (int64_t)draw(LARGEST + 1);
    used[i] = sizes[i] * (int64_t)(draw(4) ? draw(9) : draw(1 << 30));  // at the beginning of a round
  }
  for (int64_t i = 0; i < ROWS * BATCHES * CLASSES; i++)
    counts[i] = sizes[i / (BATCHES * CLASSES) * CLASSES + i % CLASSES] ? (int64_t)draw(LARGEST + 1) : 0;
  const struct qan_class_draws draws = {ROWS, BATCHES, CLASSES, ROOM, CLASSES * LARGEST, seeds, counts,
                                        sizes, members, used, indices};
  qan_draw_classes(&draws);
  for (int64_t row = 0; row < ROWS; row++) {
    int64_t done[CLASSES] = {0}, times[CLASSES * LARGEST] = {0};
    for (int64_t t = 0; t < BATCHES; t++) {
      int64_t first = 0, place = 0;
      const int64_t *batch = indices + (row * BATCHES + t) * ROOM;
      for (int64_t k = 0; k < CLASSES; first += sizes[row * CLASSES + k], k++) {
        const int64_t size = sizes[row * CLASSES + k];
        for (int64_t i = 0; i < counts[(row * BATCHES + t) * CLASSES + k]; i++, done[k]++) {
          const int64_t image = batch[place++] - 100;
          if (image < first || image >= first + size) wrong("an image of another class");
          if (times[image]++ != done[k] / size) wrong("an image that comes twice in a round");
        }
      }
      for (; place < ROOM; place++)
        if (batch[place] != -1) wrong("written behind a mini-batch");
    }
  }
  free(indices);
  free(members);
}

int main(int count, char **arguments) {
  if (count != 4) return 1;
  void *space = aligned_alloc(64, (size_t)(qan_mlp_workspace_size() + 63) / 64 * 64);
  if (!space) return 2;
  int refused = 0;
  random_state = 2 * (uint64_t)atoll(arguments[2]) + 1;
  for (int64_t left = atoll(arguments[1]); left > 0; left -= CALLS) {
    struct qan_mlp_training job =
        made_rows(between(1, MOST_ROWS), between(1, MOST_BATCHES), (int)draw(2), (int32_t)atoi(arguments[3]));
    give_indices(&job);
    give_weights(&job);
    one_draw();
    for (int64_t i = 0; i < (left < CALLS ? left : CALLS); i++) refused += one_call(&job, space);
    free((void *)job.indices);
    free(job.each);
    for (int64_t row = 0; row < job.work.networks; row++) free((void *)job.tasks[row].class_weights);
    release_rows(&job);
  }
  printf("%d refused\n", refused);
  free(space);
  return 0;
}
