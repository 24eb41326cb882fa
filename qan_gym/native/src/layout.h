// The network mnist-cnn: its sizes, and where its parameters lie in memory.
//
// conv 5x5 to 32, max-pool 3, tanh; conv 5x5 to 64, max-pool 2, tanh; linear to 200, tanh; linear to K.
// Convolutions' weights lie as (height, width, channels in, channels out), linear layers' as (in, out); each parameter
// begins on a multiple of 16 floats. This is how qan_gym.optimizee.network.Network.views lays them.
#ifndef QAN_LAYOUT_H
#define QAN_LAYOUT_H

#include <stdint.h>

enum {
  SIDE = 32,                          // an image is (C, SIDE, SIDE)
  PIXELS = SIDE * SIDE,               // of one channel
  MAX_CHANNELS = 3,                   // C is 1 to this
  MAX_CLASSES = 128,                  // K is 2 to this
  KERNEL = 5,                         // both convolutions are 5 x 5
  FILTERS1 = 32,                      // outputs of conv1
  POOL1 = 3,                          // conv1's windows are 3 x 3 places
  SIDE1 = 9,                          // map 1 is (9, 9, FILTERS1): row, column, channel
  PLACES1 = SIDE1 * SIDE1,
  ROW1 = SIDE1 * FILTERS1,            // floats in a row of map 1
  MAP1 = PLACES1 * FILTERS1,          // floats in map 1
  FILTERS2 = 64,                      // outputs of conv2
  PLACES2 = 4,                        // map 2 is (2, 2, FILTERS2), of windows of 2 x 2 places
  SPAN2 = KERNEL * FILTERS1,          // floats of map 1 that one row of conv2's kernel sees, side by side
  FEATURES = PLACES2 * FILTERS2,      // inputs of linear1, in the order (channel, place)
  HIDDEN = 200,                       // outputs of linear1
  HIDDEN_ROOM = 208,                  // the same, rounded up to a multiple of 16
};

enum tensor { CONV1, CONV1_BIAS, CONV2, CONV2_BIAS, LINEAR1, LINEAR1_BIAS, LINEAR2, LINEAR2_BIAS, TENSORS };

struct layout {
  int64_t start[TENSORS];   // floats from the beginning of a network's memory
  int64_t length[TENSORS];  // floats
  int64_t size;             // floats of one network, gaps included
};

static inline int64_t rounded_up(int64_t count) { return (count + 15) / 16 * 16; }

static inline struct layout layout_of(int64_t channels, int64_t classes) {
  struct layout layout = {
      .length = {KERNEL * KERNEL * channels * FILTERS1, FILTERS1, KERNEL * SPAN2 * FILTERS2, FILTERS2,
                 FEATURES * HIDDEN, HIDDEN, HIDDEN * classes, classes},
  };
  for (int t = 0; t < TENSORS; t++) {
    layout.start[t] = layout.size;
    layout.size += rounded_up(layout.length[t]);
  }
  return layout;
}

#endif
