// Calls with made contents, right and wrong, for a build with sanitizers. Wrong rows, indices, labels and steps must
// be refused with nothing written; numbers of any kind must do no harm. Arguments: how many calls, the seed, the bit of
// the instruction set. Prints how many were refused; ends with status 1 at the first wrong answer.
#include "made.h"

#include "fuzzing.h"

enum { MOST_NETWORKS = 3, CALLS = 100 };

static int64_t outside(int64_t count) {
  const int64_t values[] = {-1, count, INT64_MAX, INT64_MIN, count + (int64_t)draw(1000), -(int64_t)draw(1000) - 1};
  return values[draw(sizeof values / sizeof *values)];
}

// Some numbers become not finite, huge, or subnormal.
static void spoil_numbers(struct qan_training *job) {
  const uint64_t n = (uint64_t)job->work.networks, floats = n * (uint64_t)job->weights.stride;
  for (uint64_t i = draw(4); i > 0; i--) job->weights.at[draw(floats)] = odd_float();
  for (int slot = 0; slot < 2; slot++)
    if (job->slots[slot].at && draw(4) == 0) job->slots[slot].at[draw(floats)] = odd_float();
  if (draw(4) == 0) ((float *)job->strength)[draw(n)] = odd_float();
  if (draw(8) == 0) ((float *)job->data.mean)[0] = odd_float();
  if (draw(8) == 0) ((float *)job->data.std)[0] = odd_float();
  double *const values[] = {(double *)job->learning_rate, (double *)job->momentum, (double *)job->weight_decay};
  for (int i = 0; i < 3; i++)
    if (draw(6) == 0) values[i][draw(n)] = (double)odd_float();
  ((int64_t *)job->step)[draw(n)] = draw(4) ? (int64_t)draw(100000) : INT64_MAX - 1;
}

// Everything as it was made, but for other mini-batches, labels and rows.
static void restore(struct qan_training *job, const float *pristine, int64_t *rows, int32_t instruction_set) {
  const int64_t n = job->work.networks;
  const size_t bytes = (size_t)(n * job->weights.stride) * sizeof(float);
  memcpy(job->weights.at, pristine, bytes);
  for (int slot = 0; slot < 2; slot++)
    if (job->slots[slot].at) memset(job->slots[slot].at, 0, bytes);
  for (int64_t i = 0; i < n * job->batch; i++) ((int64_t *)job->indices)[i] = (int64_t)draw((uint64_t)job->data.count);
  int64_t *labels = (int64_t *)job->data.labels;
  for (int64_t i = 0; i < job->data.count; i++) labels[i] = (int64_t)draw((uint64_t)job->data.classes);
  for (int64_t c = 0; c < job->data.channels; c++) ((float *)job->data.mean)[c] = ((float *)job->data.std)[c] = 50.0f;
  for (int64_t i = 0; i < n; i++) {
    rows[i] = n - 1 - i;
    job->loss[i] = -1;
    ((float *)job->strength)[i] = 0.01f;
    ((double *)job->learning_rate)[i] = ((double *)job->momentum)[i] = ((double *)job->weight_decay)[i] = 0.01;
    ((int64_t *)job->step)[i] = 0;
  }
  job->work.rows = draw(2) ? rows : 0;
  job->work.count = job->work.rows ? 1 + (int64_t)draw((uint64_t)n) : n;
  job->work.instruction_set = instruction_set;
}

// One thing becomes wrong, or nothing; returns what `begin` must answer.
static int32_t spoil_contents(struct qan_training *job, int64_t *rows) {
  const int64_t count = job->work.count, entry = (int64_t)draw((uint64_t)count);
  const int64_t row = job->work.rows ? rows[entry] : entry;
  int64_t *index = (int64_t *)&job->indices[row * job->batch + (int64_t)draw((uint64_t)job->batch)];
  switch (draw(16)) {
    case 0: *index = outside(job->data.count); return QAN_WRONG_INDEX;
    case 1: ((int64_t *)job->data.labels)[*index] = outside(job->data.classes); return QAN_WRONG_LABEL;
    case 2: rows[entry] = outside(job->work.networks); return job->work.rows ? QAN_WRONG_ROW : QAN_OK;
    case 3:
      rows[entry] = rows[(entry + 1) % count];
      return job->work.rows && count > 1 ? QAN_REPEATED_ROW : QAN_OK;
    case 4:
      ((int64_t *)job->step)[row] = draw(2) ? -1 : INT64_MAX;
      return job->optimizer == ADAMW ? QAN_WRONG_STEP : QAN_OK;
    case 5: job->work.instruction_set = (int32_t)draw(2) * 8; return QAN_NO_ENGINE;
    default: return QAN_OK;
  }
}

static int is_finite(float x) { return x - x == 0; }

static int all_finite(const struct qan_training *job, int64_t network) {
  const struct layout layout = layout_of(job->data.channels, job->data.classes);
  for (int t = 0; t < TENSORS; t++)
    for (int64_t i = 0; i < layout.length[t]; i++)
      if (!is_finite(job->weights.at[network * job->weights.stride + layout.start[t] + i])) return 0;
  return is_finite(job->loss[network]);
}

// Returns 1 if the call was refused.
static int one_call(struct qan_training *job, const float *pristine, int32_t instruction_set, void *space) {
  int64_t rows[MOST_NETWORKS];
  restore(job, pristine, rows, instruction_set);
  const int32_t expected = spoil_contents(job, rows);
  const int32_t error = qan_begin_training(job);
  if (error != expected) wrong("another answer than expected");
  if (error) return 1;
  if (draw(2)) spoil_numbers(job);
  qan_train(job, space);
  for (int64_t entry = 0; entry < job->work.count; entry++) {
    const int64_t row = job->work.rows ? rows[entry] : entry;
    if (job->optimizer != GRADIENTS_ONLY && job->finite[row] != all_finite(job, row)) wrong("finite");
  }
  return 0;
}

// A sequence of up to three mini-batches, drawn from orders that may be wrong; all arrays are as small as they may be.
static void one_sequence(struct qan_training job, const float *pristine, int32_t instruction_set, void *space) {
  int64_t rows[MOST_NETWORKS];
  restore(&job, pristine, rows, instruction_set);
  const int64_t n = job.work.networks, images = job.data.count, count = 1 + (int64_t)draw(3);
  if (images < job.batch) return;
  int32_t *order = room((size_t)(n * images), sizeof *order);
  int64_t *clock = room((size_t)n, sizeof *clock), *indices = room((size_t)(n * count * job.batch), sizeof *indices);
  double *rates = room((size_t)(count * n), sizeof *rates);
  uint8_t *pulled = room((size_t)n, 1);
  float *smoothed = room((size_t)n, sizeof *smoothed);
  for (int64_t i = 0; i < n * images; i++) order[i] = (int32_t)draw((uint64_t)images);
  for (int64_t i = 0; i < n; i++) clock[i] = (int64_t)draw(1000), pulled[i] = (uint8_t)draw(2);
  job.sequence = (struct qan_sequence){count, images / job.batch, order, clock, draw(2) ? rates : 0, pulled,
                                       (int64_t)draw(1000), 0.5f, 0.02f, smoothed};
  job.indices = indices;
  job.indices_stride = count * job.batch;
  job.step = clock;
  const int64_t row = job.work.rows ? rows[draw((uint64_t)job.work.count)] : (int64_t)draw((uint64_t)n);
  const int64_t before = clock[row];
  int32_t expected = QAN_OK;
  if (draw(4) == 0) {
    clock[row] = draw(2) ? -1 : INT64_MAX;
    expected = QAN_WRONG_CLOCK;
  } else if (draw(4) == 0) {
    for (int64_t i = 0; i < images; i++) order[row * images + i] = draw(2) ? (int32_t)images : INT32_MIN;
    expected = QAN_WRONG_INDEX;
  }
  const int32_t error = qan_begin_training(&job);
  if (error != expected) wrong("another answer to a sequence");
  if (!error) qan_train(&job, space);
  if (!error && clock[row] != before + count) wrong("the clock");
  void *const all[] = {order, clock, indices, rates, pulled, smoothed};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void one_evaluation(const struct qan_training *job, int32_t instruction_set, void *space) {
  struct qan_evaluation evaluation = evaluation_of(job);
  evaluation.work.instruction_set = instruction_set;
  int32_t expected = QAN_OK;
  for (int64_t i = 0; i < job->data.count; i++)
    if (job->data.labels[i] < 0 || job->data.labels[i] >= job->data.classes) expected = QAN_WRONG_LABEL;
  if (qan_begin_evaluation(&evaluation) != expected) wrong("another answer to an evaluation");
  if (!expected) qan_evaluate(&evaluation, space);
  free(evaluation.loss);
  free(evaluation.accuracy);
}

// Some calls with arrays of the same shapes; returns how many were refused.
static int some_calls(int64_t count, int32_t instruction_set, void *space) {
  const struct shape shape = {
      .networks = 1 + (int64_t)draw(draw(3) ? 1 : MOST_NETWORKS),
      .images = 1 + (int64_t)draw(10),
      .channels = 1 + (int64_t)draw(MAX_CHANNELS),
      .classes = 2 + (int64_t)draw(draw(4) ? 20 : MAX_CLASSES - 1),
      .batch = 1 + (int64_t)draw(draw(8) ? 2 : 20),
  };
  struct qan_training job = made_training(shape, (int32_t)draw(ADAMW + 1), instruction_set);
  struct qan_evaluation none = {0};
  const size_t bytes = (size_t)(shape.networks * job.weights.stride) * sizeof(float);
  float *pristine = room(bytes, 1);
  memcpy(pristine, job.weights.at, bytes);
  int refused = 0;
  for (int64_t i = 0; i < count; i++) {
    if (one_call(&job, pristine, instruction_set, space)) {
      refused++;
      if (memcmp(pristine, job.weights.at, bytes) || job.loss[0] != -1) wrong("written before it was checked");
    }
    if (i % 16 == 0) one_evaluation(&job, instruction_set, space);
    if (i % 4 == 0) one_sequence(job, pristine, instruction_set, space);
  }
  free(pristine);
  release(&job, &none);
  return refused;
}

int main(int count, char **arguments) {
  if (count != 4) return 1;
  void *space = aligned_alloc(64, (size_t)(qan_workspace_size() + 63) / 64 * 64);
  if (!space) return 2;
  int refused = 0;
  random_state = 2 * (uint64_t)atoll(arguments[2]) + 1;
  for (int64_t left = atoll(arguments[1]); left > 0; left -= CALLS)
    refused += some_calls(left < CALLS ? left : CALLS, (int32_t)atoi(arguments[3]), space);
  printf("%d refused\n", refused);
  free(space);
  return 0;
}
