// Multilayer perceptrons: the interface, called through ctypes by ../mlp.py, and where their parameters lie.
//
// N rows are trained by one call, each on a task of its own: its network, images, optimizer and order. Rows lie in
// memory as in kernels.h; the memory of a row has room for the largest network.
#ifndef QAN_MLP_H
#define QAN_MLP_H

#include "kernels.h"

enum {
  MLP_HIDDEN = 3,  // a network has 1 to this many hidden layers
  MLP_LAYERS = MLP_HIDDEN + 1,
  MLP_MIN_INPUTS = 16,  // the widest vector, which an image must fill
  MLP_MAX_INPUTS = 1024,
  MLP_MIN_WIDTH = 2,
  MLP_MAX_WIDTH = 256,
  MLP_MAX_BATCH = 512,
  MLP_CHUNK = 32,  // images that pass together; a mini-batch's gradient is the sum over its chunks
  MLP_MEASURED = 1 << 17,  // of a larger network every k-th parameter is measured, k the least odd one that gives no more
};

enum mlp_activation { MLP_RELU, MLP_TANH, MLP_GELU };

// Some of a set of images, and their labels.
struct qan_examples {
  const uint8_t *images;  // (total, D)
  int64_t total;
  const int32_t *chosen;  // (count,) from 0 to total - 1
  const uint8_t *labels;  // (count,) from 0 to K - 1
  int64_t count;
};

// What a row trains. An input is byte * scale + shift.
struct qan_mlp_task {
  struct qan_examples train;
  int64_t inputs;              // D
  int64_t classes;             // K
  int64_t hidden;              // layers
  int64_t widths[MLP_HIDDEN];  // of the hidden layers
  int64_t batch;               // B, at most train.count
  int64_t seed;                // of the order of the images
  const float *class_weights;  // (K,) of the losses of a class's images in training; or NULL: all 1
  double beta2, epsilon;       // ADAMW
  float scale, shift;
  float loss_scale;    // the loss and its gradient are multiplied by it
  int32_t activation;  // enum mlp_activation
  int32_t optimizer;   // enum optimizer, not GRADIENTS_ONLY
  int32_t normalised;  // 1: layer normalisation, without parameters, in front of each activation; else 0
};

struct qan_mlp_training {
  struct qan_work work;
  const struct qan_mlp_task *tasks;  // (N,)
  struct qan_memory weights;
  struct qan_memory slots[2];             // as in `struct qan_training`; may be NULL where no row has them
  struct qan_memory previous_gradient;    // with `measured`: of the mini-batch before
  struct qan_memory start;                // with `measured`, out: the weights at the call's start
  struct qan_memory previous_displacement;  // with `measured`: what the call before moved the weights by
  const double *momentum, *weight_decay;  // (N,)
  int64_t *clock;                         // (N,) mini-batches done before, at least 0; moves on
  const int64_t *counts;                  // (N,) mini-batches to train on, 0 to `most`
  int64_t most;                           // M, at least 1
  const double *rates;                    // (N, M) learning rates
  float *losses;    // (N, M) out: of each mini-batch, before its update, weighted; 0 from a row's count on
  uint8_t *finite;  // (N,) whether loss and weights have been finite; a row that is not is no longer trained
  float *measured;  // (N, MEASUREMENTS) out; or NULL
  int64_t room;             // images of a mini-batch that `indices` and `each` have room for, at least every row's
  const int64_t *indices;  // (N, M, room) of the images of each mini-batch, from 0 on; or NULL: those of the epochs
  float *each;             // (N, M, room) out: the cross-entropy of each image, not scaled or weighted; or NULL
};

struct qan_mlp_evaluation {
  struct qan_work work;
  const struct qan_mlp_task *tasks;      // (N,)
  const struct qan_examples *examples;  // (N,)
  struct qan_memory weights;
  float *loss;      // (N,) out: mean cross-entropy, without the loss scale
  float *accuracy;  // (N,) out, from 0 to 1
  int64_t room;  // images of a row that `each` has room for
  float *each;   // (N, room) out: the cross-entropy of each image; or NULL
};

// Mini-batches of classes, drawn with replacement: each class of a row goes through its images in a random order, and
// then through all of them in another one.
struct qan_class_draws {
  int64_t rows;     // N
  int64_t batches;  // M
  int64_t classes;  // K
  int64_t room;     // images that a mini-batch has room for
  int64_t most;     // images that a row has room for
  const int64_t *seeds;    // (N,)
  const int64_t *counts;   // (N, M, K) images of each class; 0 of a class without images
  const int64_t *sizes;    // (N, K) images of each class that there are
  const int32_t *members;  // (N, most) of the row's images, those of class 0, of class 1, ...
  int64_t *used;           // (N, K) images drawn of each class before; moves on
  int64_t *indices;        // (N, M, room) out; unchanged from the end of a mini-batch on
};

#pragma GCC visibility push(default)
// Floats of one network; 0 where the task has sizes out of range.
int64_t qan_mlp_size(const struct qan_mlp_task *task);
// Bytes that a thread needs to work in, aligned to 64.
int64_t qan_mlp_workspace_size(void);
// As for `qan_training`. Also refuses tasks, counts and clocks out of range; what `chosen` and `labels` hold is the
// caller's to check, once.
int32_t qan_begin_mlp_training(struct qan_mlp_training *job);
int32_t qan_begin_mlp_evaluation(struct qan_mlp_evaluation *job);
void qan_train_mlp(struct qan_mlp_training *job, void *workspace);
void qan_evaluate_mlp(struct qan_mlp_evaluation *job, void *workspace);
// Fresh weights: normal with standard deviation scale * gain / sqrt(inputs), the gain sqrt(2) in front of ReLU and GELU,
// else 1; biases and gaps are 0.
void qan_initialise_mlp(const struct qan_mlp_task *task, int64_t seed, double scale, float *weights);
// The indices of the images at the places `first`, first + 1, ... of an epoch.
void qan_shuffled(int64_t seed, int64_t epoch, int64_t first, int64_t count, int64_t total, int64_t *indices);
// Nothing is checked.
void qan_draw_classes(const struct qan_class_draws *draws);
#pragma GCC visibility pop

// Where the layers lie: weights (in, out), then biases, each on a multiple of 16 floats.
struct mlp_layout {
  int layers;               // hidden ones and the last
  int inputs[MLP_LAYERS];   // of each layer
  int outputs[MLP_LAYERS];
  int room[MLP_LAYERS];     // outputs, rounded up to a multiple of 16
  int64_t weight[MLP_LAYERS], bias[MLP_LAYERS];
  int64_t size, parameters;  // floats with and without the gaps
};

static inline struct mlp_layout mlp_layout_of(const struct qan_mlp_task *task) {
  struct mlp_layout layout = {.layers = (int)task->hidden + 1};
  int64_t inputs = task->inputs;
  for (int l = 0; l < layout.layers; l++) {
    const int64_t outputs = l < task->hidden ? task->widths[l] : task->classes;
    layout.inputs[l] = (int)inputs;
    layout.outputs[l] = (int)outputs;
    layout.room[l] = (int)rounded_up(outputs);
    layout.weight[l] = layout.size;
    layout.bias[l] = layout.size + rounded_up(inputs * outputs);
    layout.size = layout.bias[l] + rounded_up(outputs);
    layout.parameters += (inputs + 1) * outputs;
    inputs = outputs;
  }
  return layout;
}

#endif
