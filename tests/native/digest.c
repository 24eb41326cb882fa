// Prints hashes of short trainings, evaluations and of exp, log and cos, one a line: the same with every compiler and
// processor. Argument: the bit of the instruction set.
#include "made.h"

// FNV-1a.
static uint64_t hash_of(const void *bytes, size_t count, uint64_t hash) {
  for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3ULL;
  return hash;
}

static uint64_t hash_of_results(const struct qan_training *job, const struct qan_evaluation *evaluation) {
  const size_t n = (size_t)job->work.networks;
  const size_t size = n * sizeof(float) * (size_t)qan_size(job->data.channels, job->data.classes);
  uint64_t hash = hash_of(job->weights.at, size, 0xcbf29ce484222325ULL);
  if (job->gradients.at) hash = hash_of(job->gradients.at, size, hash);
  for (int slot = 0; slot < 2; slot++)
    if (job->slots[slot].at) hash = hash_of(job->slots[slot].at, size, hash);
  hash = hash_of(job->loss, n * sizeof(float), hash);
  hash = hash_of(job->finite, n, hash);
  hash = hash_of(evaluation->loss, n * sizeof(float), hash);
  return hash_of(evaluation->accuracy, n * sizeof(float), hash);
}

static void print_trainings(int32_t instruction_set, void *space) {
  static const struct shape shapes[] = {{2, 40, 1, 10, 10}, {1, 40, 3, 2, 1}, {1, 40, 2, 62, 37}, {1, 20, 1, 128, 16}};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int32_t optimizer = GRADIENTS_ONLY; optimizer <= ADAMW; optimizer++) {
      random_state = 1 + s;
      struct qan_training job = made_training(shapes[s], optimizer, instruction_set);
      struct qan_evaluation evaluation = evaluation_of(&job);
      for (int step = 0; step < 3; step++) {
        if (qan_begin_training(&job)) exit(3);
        qan_train(&job, space);
        for (int64_t n = 0; n < job.work.networks; n++) ((int64_t *)job.step)[n]++;
      }
      if (qan_begin_evaluation(&evaluation)) exit(3);
      qan_evaluate(&evaluation, space);
      printf("%d %016llx\n", (int)s, (unsigned long long)hash_of_results(&job, &evaluation));
      release(&job, &evaluation);
    }
}

static void print_function(void (*function)(const double *, double *, int64_t), double low, double high) {
  enum { COUNT = 20000 };
  static double x[COUNT], y[COUNT];
  for (int i = 0; i < COUNT; i++) x[i] = low + (high - low) * (double)draw(1 << 30) / (1 << 30);
  function(x, y, COUNT);
  printf("%016llx\n", (unsigned long long)hash_of(y, sizeof y, 0xcbf29ce484222325ULL));
}

int main(int count, char **arguments) {
  if (count != 2) return 1;
  void *space = aligned_alloc(64, (size_t)(qan_workspace_size() + 63) / 64 * 64);
  if (!space) return 2;
  print_trainings((int32_t)atoi(arguments[1]), space);
  print_function(qan_exp, -700, 700);
  print_function(qan_log, 0, 1000);
  print_function(qan_cos, -6283, 6283);
  free(space);
  return 0;
}
