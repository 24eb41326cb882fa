// Made data and jobs for the programs beside this file. Every array is of its own and exactly as long as it is.
#include "made_numbers.h"

struct shape {
  int64_t networks, images, channels, classes, batch;
};

static float *made_networks(int64_t count, struct shape shape) {
  const int64_t size = qan_size(shape.channels, shape.classes);
  float *memory = room((size_t)(count * size), sizeof(float));
  for (int64_t i = 0; i < count * size; i++) memory[i] = draw_unit() * 0.08f;
  return memory;
}

static struct qan_images made_images(struct shape shape) {
  const int64_t pixels = shape.images * shape.channels * PIXELS;
  uint8_t *images = room((size_t)pixels, 1);
  int64_t *labels = room((size_t)shape.images, sizeof(int64_t));
  float *mean = room((size_t)shape.channels, sizeof(float)), *std = room((size_t)shape.channels, sizeof(float));
  for (int64_t i = 0; i < pixels; i++) images[i] = i / 512 % 3 ? (uint8_t)draw(256) : 0;
  for (int64_t i = 0; i < shape.images; i++) labels[i] = (int64_t)draw((uint64_t)shape.classes);
  for (int64_t c = 0; c < shape.channels; c++) {
    mean[c] = 40.0f + (float)draw(40);
    std[c] = 60.0f + (float)draw(40);
  }
  return (struct qan_images){shape.images, shape.channels, shape.classes, images, labels, mean, std};
}

static struct qan_training made_training(struct shape shape, int32_t optimizer, int32_t instruction_set) {
  const int64_t n = shape.networks, size = qan_size(shape.channels, shape.classes);
  int64_t *indices = room((size_t)(n * shape.batch), sizeof(int64_t));
  for (int64_t i = 0; i < n * shape.batch; i++) indices[i] = (int64_t)draw((uint64_t)shape.images);
  float *strength = room((size_t)n, sizeof(float));
  for (int64_t i = 0; i < n; i++) strength[i] = (float)draw(3) / 64;
  float *loss_scale = room((size_t)n, sizeof(float));
  for (int64_t i = 0; i < n; i++) loss_scale[i] = 1;
  struct qan_training job = {
      .work = {.networks = n, .count = n, .seen = room((size_t)n, 1), .instruction_set = instruction_set},
      .data = made_images(shape),
      .batch = shape.batch,
      .indices_stride = shape.batch,
      .indices = indices,
      .weights = {made_networks(n, shape), size},
      .reference = {made_networks(1, shape), 0},
      .optimizer = optimizer,
      .pulled = (uint32_t)draw(256),
      .learning_rate = made_hyperparameters(n, optimizer == ADAMW ? 0.001 : 0.05),
      .momentum = made_hyperparameters(n, 0.4),
      .weight_decay = made_hyperparameters(n, 0.001),
      .beta2 = 0.999,
      .epsilon = 1e-8,
      .step = room((size_t)n, sizeof(int64_t)),
      .strength = strength,
      .loss_scale = loss_scale,
      .loss = room((size_t)n, sizeof(float)),
      .finite = room((size_t)n, 1),
  };
  const size_t floats = (size_t)(n * size);
  if (optimizer == GRADIENTS_ONLY) job.gradients = (struct qan_memory){room(floats, sizeof(float)), size};
  if (optimizer > SGD) job.slots[0] = (struct qan_memory){room(floats, sizeof(float)), size};
  if (optimizer == ADAMW) job.slots[1] = (struct qan_memory){room(floats, sizeof(float)), size};
  return job;
}

static struct qan_evaluation evaluation_of(const struct qan_training *job) {
  const size_t n = (size_t)job->work.networks;
  return (struct qan_evaluation){
      .work = {job->work.networks, job->work.networks, 0, job->work.seen, 0, job->work.instruction_set, 0},
      .data = job->data,
      .weights = job->weights,
      .loss = room(n, sizeof(float)),
      .accuracy = room(n, sizeof(float)),
  };
}

static void release(struct qan_training *job, struct qan_evaluation *evaluation) {
  const void *arrays[] = {job->work.seen,       job->data.images,   job->data.labels,   job->data.mean,
                          job->data.std,        job->indices,       job->weights.at,    job->gradients.at,
                          job->reference.at,    job->slots[0].at,   job->slots[1].at,   job->learning_rate,
                          job->momentum,        job->weight_decay,  job->step,          job->strength,
                          job->loss,            job->finite,        evaluation->loss,   evaluation->accuracy,
                          job->loss_scale};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free((void *)arrays[i]);
}
