// Prints hashes of trainings and evaluations of made multilayer perceptrons, one a line: the same with every compiler and
// processor. Argument: the bit of the instruction set.
#include "mlp_made.h"

// FNV-1a.
static uint64_t hash_of(const void *bytes, size_t count, uint64_t hash) {
  for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ULL;
  return hash;
}

static uint64_t hash_of_row(const struct qan_mlp_training *job, int64_t row) {
  const size_t size = (size_t)mlp_layout_of(&job->tasks[row]).size * sizeof(float);
  const struct qan_memory *const memories[] = {&job->weights, &job->slots[0], &job->slots[1], &job->previous_gradient,
                                               &job->start, &job->previous_displacement};
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (int i = 0; i < 6; i++)
    if (memories[i]->at) hash = hash_of(memories[i]->at + row * memories[i]->stride, size, hash);
  hash = hash_of(job->losses + row * job->most, (size_t)job->most * sizeof(float), hash);
  if (job->measured) hash = hash_of(job->measured + row * MEASUREMENTS, MEASUREMENTS * sizeof(float), hash);
  return hash_of(job->finite + row, 1, hash);
}

static void print_rows(int measured, int32_t instruction_set, void *space) {
  enum { ROWS = 48, MOST = 4 };
  struct qan_mlp_training job = made_rows(ROWS, MOST, measured, instruction_set);
  struct qan_examples examples[ROWS];
  float loss[ROWS], accuracy[ROWS];
  for (int64_t i = 0; i < ROWS; i++) examples[i] = job.tasks[i].train;
  for (int call = 0; call < 2; call++) {
    if (qan_begin_mlp_training(&job)) exit(3);
    qan_train_mlp(&job, space);
  }
  struct qan_mlp_evaluation evaluation = {job.work, job.tasks, examples, job.weights, loss, accuracy, 0, NULL};
  if (qan_begin_mlp_evaluation(&evaluation)) exit(3);
  qan_evaluate_mlp(&evaluation, space);
  for (int64_t i = 0; i < ROWS; i++)
    printf("%d %016llx %a %a\n", (int)i, (unsigned long long)hash_of_row(&job, i), (double)loss[i], (double)accuracy[i]);
  release_rows(&job);
}

int main(int count, char **arguments) {
  if (count != 2) return 1;
  void *space = aligned_alloc(64, (size_t)(qan_mlp_workspace_size() + 63) / 64 * 64);
  if (!space) return 2;
  for (int measured = 0; measured < 2; measured++) print_rows(measured, (int32_t)atoi(arguments[1]), space);
  free(space);
  return 0;
}
