// Made rows for the programs beside this file that train multilayer perceptrons. Every array is of its own and exactly as
// long as it is.
#include "made_numbers.h"
#include "mlp.h"

static struct qan_examples made_examples(int64_t inputs, int64_t classes, int64_t count) {
  const int64_t total = 1 + (int64_t)draw(20);
  uint8_t *images = room((size_t)(total * inputs), 1), *labels = room((size_t)count, 1);
  int32_t *chosen = room((size_t)count, sizeof *chosen);
  for (int64_t i = 0; i < total * inputs; i++) images[i] = draw(3) ? (uint8_t)draw(256) : 0;
  for (int64_t i = 0; i < count; i++) {
    chosen[i] = (int32_t)draw((uint64_t)total);
    labels[i] = (uint8_t)draw((uint64_t)classes);
  }
  return (struct qan_examples){images, total, chosen, labels, count};
}

static int64_t between(int64_t low, int64_t high) { return low + (int64_t)draw((uint64_t)(high - low + 1)); }

// Of small networks, and now and then of any that there is.
static struct qan_mlp_task made_task(void) {
  const int large = draw(24) == 0;
  struct qan_mlp_task task = {
      .inputs = between(MLP_MIN_INPUTS, large ? MLP_MAX_INPUTS : 80),
      .classes = between(2, large ? MAX_CLASSES : 20),
      .hidden = between(1, MLP_HIDDEN),
      .batch = between(1, large ? MLP_MAX_BATCH / 4 : 40),
      .seed = (int64_t)(draw(UINT32_MAX) << 31),
      .beta2 = 0.99,
      .epsilon = 1e-8,
      .scale = 0.01f,
      .shift = draw_unit(),
      .loss_scale = 1.0f + draw_unit() / 2,
      .activation = (int32_t)between(MLP_RELU, MLP_GELU),
      .optimizer = (int32_t)between(SGD, ADAMW),
  };
  task.normalised = (int32_t)(task.seed >> 31 & 1);
  for (int l = 0; l < task.hidden; l++) task.widths[l] = between(2, large ? MLP_MAX_WIDTH : 40);
  task.train = made_examples(task.inputs, task.classes, task.batch + (int64_t)draw(60));
  return task;
}

// N rows with tasks of their own, M mini-batches each at most.
static struct qan_mlp_training made_rows(int64_t number, int64_t most, int measured, int32_t instruction_set) {
  const size_t n = (size_t)number;
  struct qan_mlp_task *tasks = room(n, sizeof *tasks);
  int64_t size = 0, *counts = room(n, sizeof *counts);
  double *rates = room(n * (size_t)most, sizeof *rates);
  for (size_t i = 0; i < n; i++) {
    tasks[i] = made_task();
    size = mlp_layout_of(&tasks[i]).size > size ? mlp_layout_of(&tasks[i]).size : size;
    counts[i] = between(0, most);
    for (int64_t t = 0; t < most; t++) rates[(int64_t)i * most + t] = tasks[i].optimizer == ADAMW ? 0.002 : 0.03;
  }
  struct qan_mlp_training job = {
      .work = {.networks = number, .count = number, .seen = room(n, 1), .instruction_set = instruction_set},
      .tasks = tasks,
      .momentum = made_hyperparameters(number, 0.4),
      .weight_decay = made_hyperparameters(number, 0.001),
      .clock = room(n, sizeof(int64_t)),
      .counts = counts,
      .most = most,
      .rates = rates,
      .losses = room(n * (size_t)most, sizeof(float)),
      .finite = room(n, 1),
      .measured = measured ? room(n * MEASUREMENTS, sizeof(float)) : 0,
  };
  struct qan_memory *const memories[] = {&job.weights, &job.slots[0], &job.slots[1], &job.previous_gradient, &job.start,
                                         &job.previous_displacement};
  for (int i = 0; i < (measured ? 6 : 3); i++) *memories[i] = (struct qan_memory){room(n * (size_t)size, 4), size};
  for (size_t i = 0; i < n; i++) {
    qan_initialise_mlp(&tasks[i], tasks[i].seed, 1.0, job.weights.at + (int64_t)i * size);
    job.finite[i] = 1;
  }
  return job;
}

static void release_examples(const struct qan_examples *examples) {
  free((void *)examples->images);
  free((void *)examples->chosen);
  free((void *)examples->labels);
}

static void release_rows(struct qan_mlp_training *job) {
  for (int64_t i = 0; i < job->work.networks; i++) release_examples(&job->tasks[i].train);
  const void *arrays[] = {job->work.seen, job->tasks, job->momentum, job->weight_decay, job->clock, job->counts,
                          job->rates, job->losses, job->finite, job->measured, job->weights.at, job->slots[0].at,
                          job->slots[1].at, job->previous_gradient.at, job->start.at, job->previous_displacement.at};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free((void *)arrays[i]);
}
