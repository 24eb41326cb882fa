// What is compiled once per instruction set, and the memory that it works in.
#ifndef QAN_ENGINE_H
#define QAN_ENGINE_H

#include <string.h>

#include "kernels.h"
#include "mlp.h"

enum {
  CHUNK = 16,  // images that pass through the network together; a mini-batch's gradient is the sum over its chunks
  COLUMN = 8,  // floats that `struct workspace.columns` holds of a row
  TAPS = 48,   // 5 rows of COLUMN, rounded up to a multiple of 16
  MAX_SIZE = KERNEL * KERNEL * MAX_CHANNELS * FILTERS1 + FILTERS1 + KERNEL * SPAN2 * FILTERS2 + FILTERS2 +
             FEATURES * HIDDEN + HIDDEN_ROOM + (HIDDEN + 1) * MAX_CLASSES,
  MLP_MAX_SIZE = (MLP_MAX_INPUTS + 1) * MLP_MAX_WIDTH + (MLP_HIDDEN - 1) * (MLP_MAX_WIDTH + 1) * MLP_MAX_WIDTH +
                 (MLP_MAX_WIDTH + 1) * MAX_CLASSES,
};

// Of one thread. Of some arrays vectors read a little more than there is: the next array lies behind them.
struct workspace {
  _Alignas(64) float images[CHUNK * MAX_CHANNELS * PIXELS];  // (b, C, 32, 32) normalised
  float blank[MAX_CHANNELS * PIXELS];                        // (C, 32, 32) background, normalised
  float blank_map1[FILTERS1];                                // what a window of conv1 that sees only background gives
  float map1[CHUNK * MAP1];                                  // (b, 9, 9, 32) after pooling and tanh
  float map2[CHUNK * FEATURES];                              // (b, 4, 64) after pooling and tanh
  float features[CHUNK * FEATURES];                          // (b, 64, 4), map2 in the order of linear1's inputs
  float hidden[CHUNK * HIDDEN_ROOM];                         // (b, 208) after tanh; behind the 200 are zeros
  float logits[CHUNK * MAX_CLASSES];                         // (b, K rounded up to 16); then their gradients
  float d_hidden[CHUNK * HIDDEN_ROOM];                       // gradients of the loss, each before its tanh
  float d_features[CHUNK * FEATURES];
  float d_map2[CHUNK * FEATURES];
  float d_map1[CHUNK * MAP1];
  float conv2_by_filter[KERNEL * FILTERS2 * SPAN2];   // (5, 64, 160) conv2's weights: kernel row, filter, rest
  float linear2_by_class[MAX_CLASSES * HIDDEN_ROOM];  // (K, 208) linear2's weights; behind the 200 are zeros
  float columns[(SIDE - KERNEL + 1) * SIDE * COLUMN + TAPS];  // (28, 32, 8) by column, row: the 8 pixels from there on
  float conv1_taps[MAX_CHANNELS * FILTERS1 * TAPS];  // (C, 32, 48) gradient of conv1's weights: 5 rows of COLUMN
  float conv2_rows[16 * SPAN2];                      // gradient of conv2's weights, one kernel row of 16 filters
  float gradient[MAX_SIZE];                          // of one network, laid out like its parameters
  uint16_t winners1[CHUNK * MAP1];                   // where in `columns` each window's largest value was found
  uint16_t winners2[CHUNK * FEATURES];               // where in a map 1
  uint8_t won[CHUNK * 16 * FILTERS2];                // (b, 4, 4, 64) per place of conv2: the channels that won there
  int32_t won_count[CHUNK * 16];                     // how many
  uint8_t live[CHUNK * PLACES1];                     // per image: the windows of conv1 that see more than background
  int32_t live_count[CHUNK];                         // how many
};

// Of one thread, for multilayer perceptrons. The largest network has MLP_HIDDEN layers of MLP_MAX_WIDTH; twice its
// memory, its transposed weights but for the first layer, and MLP_CHUNK rows of inputs, of three arrays per layer, and of
// what normalisation keeps of each hidden one.
struct mlp_space {
  _Alignas(64) float pool[2 * MLP_MAX_SIZE + 2 * MLP_MAX_WIDTH * MLP_MAX_WIDTH + MLP_MAX_WIDTH * MAX_CLASSES +
                          MLP_CHUNK * (MLP_MAX_INPUTS + 3 * (MLP_HIDDEN * MLP_MAX_WIDTH + MAX_CLASSES) +
                                       MLP_HIDDEN * (MLP_MAX_WIDTH + 1)) + 64];
  float sampled[3][MLP_MEASURED];  // weights, gradient and previous gradient of a network with more parameters
};

struct engine {
  void (*train)(const struct qan_training *job, int64_t network, struct workspace *space);
  void (*evaluate)(const struct qan_evaluation *job, int64_t network, struct workspace *space);
  void (*train_mlp)(const struct qan_mlp_training *job, int64_t row, struct mlp_space *space);
  void (*evaluate_mlp)(const struct qan_mlp_evaluation *job, int64_t row, struct mlp_space *space);
};

extern const struct engine qan_avx2, qan_avx512, qan_neon;

// NULL: the library or the processor has no such instruction set.
const struct engine *engine_of(int32_t instruction_set);
// Are instruction set and rows right?
int32_t check_work(const struct qan_work *work);
int64_t row_of(const struct qan_work *work, int64_t entry);
// The next row that no thread has taken, or -1.
int64_t take(struct qan_work *work);

#endif
