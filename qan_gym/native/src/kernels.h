// The interface of the library: plain C, called through ctypes by ../kernels.py, which declares the same structures.
//
// N networks lie in memory one after another. Whatever there is one of per network is an array that the number of the
// network indexes. A call names the networks that it is about in `rows`; without rows it is about all of them.
#ifndef QAN_KERNELS_H
#define QAN_KERNELS_H

#include <stdint.h>

#include "layout.h"

enum instruction_set { AVX2 = 1, AVX512 = 2, NEON = 4 };

enum optimizer {
  GRADIENTS_ONLY,
  SGD,
  SGD_MOMENTUM,
  SGD_NESTEROV,
  ADAMW,
};

// Of one network at a time, N of them: float32, `stride` floats from one to the next. A stride of 0: all share one.
struct qan_memory {
  float *at;
  int64_t stride;
};

struct qan_images {
  int64_t count;          // n
  int64_t channels;       // C
  int64_t classes;        // K
  const uint8_t *images;  // (n, C, 32, 32)
  const int64_t *labels;  // (n,) from 0 to K - 1
  const float *mean;      // (C,)
  const float *std;       // (C,)
};

// Which networks a call is about, and how far it has come.
struct qan_work {
  int64_t networks;     // N
  int64_t count;        // entries of `rows`, or N
  const int64_t *rows;  // (count,) different numbers from 0 to N - 1; or NULL: 0 to N - 1
  uint8_t *seen;        // (N,) to work in
  int64_t next;         // the next entry that a thread takes
  int32_t instruction_set;
  int32_t reserved;
};

// Several mini-batches in a row, each the next piece of a network's own order of the images.
struct qan_sequence {
  int64_t count;          // mini-batches; 0: a single one, whose `indices` are given
  int64_t per_epoch;      // mini-batches of an epoch, at least 1
  const int32_t *order;   // (N, n) of the images, from 0 to n - 1
  int64_t *clock;         // (N,) mini-batches done before, at least 0; moves on
  const double *rates;    // (count, N) which become the learning rate in turn; or NULL: it stays
  const uint8_t *pulled;  // (N,) whether a network is pulled, as long as its clock is below `pull_end`
  int64_t pull_end;
  float pull_strength;
  float smoothing;  // weight of a new loss in the running mean
  float *smoothed;  // (N,) running mean of the losses
};

// What is measured of the mini-batches of an action, see qan_gym.core.statistics; the order of the numbers.
enum measurement {
  GRADIENT_NORM,        // means over the mini-batches: of the norm of the gradient,
  GRADIENT_COSINE,      // of its cosine with the one before,
  UPDATE_NORM,          // of the norm of the update, without the pull,
  PREDICTED_DECREASE,   // of minus the product of gradient and update
  DISPLACEMENT,         // norm of what the action moved the weights by
  DISPLACEMENT_COSINE,  // its cosine with that of the action before
  WEIGHT_NORM,          // at the action's end
  MEASUREMENTS,
};

struct qan_measuring {
  float *measured;  // (N, MEASUREMENTS) out, complete after the last mini-batch of an action; or NULL: nothing is measured
  float *losses;    // (N, batches) out: of each mini-batch, before its update
  int64_t batches;  // of an action
  int64_t first;    // the number in its action of the mini-batch that a call begins with
  struct qan_memory previous_gradient;      // 0 before the first mini-batch of an episode
  struct qan_memory start;                  // to work in: the weights at the action's start
  struct qan_memory previous_displacement;  // 0 before the first action of an episode
};

struct qan_training {
  struct qan_work work;
  struct qan_images data;
  struct qan_sequence sequence;
  struct qan_measuring measuring;
  int64_t batch;           // images of a mini-batch
  int64_t indices_stride;  // from the indices of one network to the next
  int64_t *indices;        // (N, batch) from 0 to n - 1; (N, count, batch) out with a sequence
  struct qan_memory weights;
  struct qan_memory gradients;  // GRADIENTS_ONLY: where they go
  struct qan_memory reference;  // w*; used where `strength` is not 0
  struct qan_memory slots[2];   // SGD: the velocity; ADAMW: mean and mean square of the gradients
  int32_t optimizer;            // enum optimizer
  uint32_t pulled;              // bit t: tensor t is pulled
  double *learning_rate;                  // (N,) set by the `rates` of a sequence
  const double *momentum, *weight_decay;  // (N,)
  const float *loss_scale;                // (N,) the loss and its gradient are multiplied by it
  double beta2, epsilon;                  // ADAMW
  const int64_t *step;                    // (N,) updates before this one; ADAMW; may be the sequence's clock
  float *strength;                        // (N,) of the pull; or NULL: no pull; set by a sequence
  float *loss;                            // (N,) out; a sequence adds each loss to what is there
  uint8_t *finite;  // (N,) out: 1 if the loss and all weights after the update are finite; GRADIENTS_ONLY: the loss
  float *each;      // (N, batch) out, without a sequence: of each image, without the loss scale; or NULL
};

struct qan_evaluation {
  struct qan_work work;
  struct qan_images data;
  struct qan_memory weights;
  float *loss;      // (N,) out: mean cross-entropy
  float *accuracy;  // (N,) out, from 0 to 1
  float *each;      // (N, n) out: the cross-entropy of each image; or NULL
};

enum qan_error {
  QAN_OK,
  QAN_NO_ENGINE,
  QAN_WRONG_ROW,
  QAN_REPEATED_ROW,
  QAN_WRONG_INDEX,
  QAN_WRONG_LABEL,
  QAN_WRONG_STEP,
  QAN_WRONG_CLOCK,
  QAN_WRONG_TASK,
  QAN_WRONG_COUNT,
};

#pragma GCC visibility push(default)

// SHA-256 of the sources that the library is compiled from.
const char *qan_digest(void);
// Bits of `enum instruction_set`: those that the library has and this processor has too.
int32_t qan_instruction_sets(void);
// Floats of one network.
int64_t qan_size(int64_t channels, int64_t classes);
// Bytes that a thread needs to work in, aligned to 64.
int64_t qan_workspace_size(void);

// Check instruction set, rows, indices, labels and steps before anything is written, and put `next` to the beginning.
int32_t qan_begin_training(struct qan_training *job);
int32_t qan_begin_evaluation(struct qan_evaluation *job);
// After that, on any number of threads at once, each with its own workspace: take networks until there are none left.
void qan_train(struct qan_training *job, void *workspace);
void qan_evaluate(struct qan_evaluation *job, void *workspace);

// y[i] = f(x[i]) for `count` numbers, in double precision; the same bits on every machine.
// Of one number: a call without arrays costs a tenth.
double qan_exp_of(double x);
double qan_log_of(double x);
double qan_cos_of(double x);
void qan_exp(const double *x, double *y, int64_t count);
void qan_log(const double *x, double *y, int64_t count);
void qan_cos(const double *x, double *y, int64_t count);
#pragma GCC visibility pop

#endif
