// The interface's functions: which instruction set, what is checked, who takes which network.
#include "kernels.h"

#include "engine.h"

#ifndef QAN_DIGEST
#define QAN_DIGEST ""
#endif

const char *qan_digest(void) { return QAN_DIGEST; }

int32_t qan_instruction_sets(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  return (avx2 ? AVX2 : 0) | (avx512 ? AVX512 : 0);
#elif defined(__aarch64__)
  return NEON;
#else
  return 0;
#endif
}

const struct engine *engine_of(int32_t instruction_set) {
  switch (instruction_set & qan_instruction_sets()) {
#if defined(__x86_64__)
    case AVX2: return &qan_avx2;
    case AVX512: return &qan_avx512;
#elif defined(__aarch64__)
    case NEON: return &qan_neon;
#endif
    default: return 0;
  }
}

int64_t qan_size(int64_t channels, int64_t classes) { return layout_of(channels, classes).size; }

int64_t qan_workspace_size(void) { return (int64_t)sizeof(struct workspace); }

int64_t row_of(const struct qan_work *work, int64_t entry) { return work->rows ? work->rows[entry] : entry; }

int32_t check_work(const struct qan_work *work) {
  if (!engine_of(work->instruction_set)) return QAN_NO_ENGINE;
  if (!work->rows) return QAN_OK;
  memset(work->seen, 0, (size_t)work->networks);
  for (int64_t entry = 0; entry < work->count; entry++) {
    const int64_t row = work->rows[entry];
    if (row < 0 || row >= work->networks) return QAN_WRONG_ROW;
    if (work->seen[row]++) return QAN_REPEATED_ROW;
  }
  return QAN_OK;
}

static int32_t check_label(const struct qan_images *data, int64_t index) {
  return data->labels[index] < 0 || data->labels[index] >= data->classes ? QAN_WRONG_LABEL : QAN_OK;
}

// The mini-batches of a sequence become `indices`, which hold nothing but what is drawn here.
static int32_t draw(const struct qan_training *job, int64_t row) {
  const struct qan_sequence *sequence = &job->sequence;
  const int64_t clock = sequence->clock[row];
  if (clock < 0 || clock > INT64_MAX - sequence->count) return QAN_WRONG_CLOCK;
  int64_t *indices = job->indices + row * job->indices_stride;
  for (int64_t number = 0; number < sequence->count; number++, indices += job->batch) {
    const int64_t place = (clock + number) % sequence->per_epoch * job->batch;
    for (int64_t i = 0; i < job->batch; i++) indices[i] = sequence->order[row * job->data.count + place + i];
  }
  return QAN_OK;
}

static int32_t check_indices(const struct qan_training *job, int64_t row) {
  const int64_t *indices = job->indices + row * job->indices_stride;
  const int64_t count = job->batch * (job->sequence.count ? job->sequence.count : 1);
  for (int64_t i = 0; i < count; i++) {
    if (indices[i] < 0 || indices[i] >= job->data.count) return QAN_WRONG_INDEX;
    const int32_t error = check_label(&job->data, indices[i]);
    if (error) return error;
  }
  return QAN_OK;
}

static int32_t check_step(int64_t step) { return step < 0 || step == INT64_MAX ? QAN_WRONG_STEP : QAN_OK; }

int32_t qan_begin_training(struct qan_training *job) {
  int32_t error = check_work(&job->work);
  for (int64_t entry = 0; entry < job->work.count && !error; entry++) {
    const int64_t row = row_of(&job->work, entry);
    if (job->sequence.count) error = draw(job, row);
    if (!error) error = check_indices(job, row);
    if (!error && job->optimizer == ADAMW) error = check_step(job->step[row]);
  }
  job->work.next = 0;
  return error;
}

int32_t qan_begin_evaluation(struct qan_evaluation *job) {
  int32_t error = check_work(&job->work);
  for (int64_t i = 0; i < job->data.count && !error; i++) error = check_label(&job->data, i);
  job->work.next = 0;
  return error;
}

int64_t take(struct qan_work *work) {
  const int64_t entry = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
  return entry < work->count ? row_of(work, entry) : -1;
}

void qan_train(struct qan_training *job, void *workspace) {
  const struct engine *engine = engine_of(job->work.instruction_set);
  for (int64_t n = take(&job->work); n >= 0; n = take(&job->work)) engine->train(job, n, workspace);
}

void qan_evaluate(struct qan_evaluation *job, void *workspace) {
  const struct engine *engine = engine_of(job->work.instruction_set);
  for (int64_t n = take(&job->work); n >= 0; n = take(&job->work)) engine->evaluate(job, n, workspace);
}
