// The kernels for ARM64's NEON: 32 registers of 4 floats.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "engine.h"

#define LANES 4
#include "vectors.h"

INLINE floats broadcast(float x) { return (floats)vdupq_n_f32(x); }
INLINE floats fmadd(floats a, floats b, floats c) {
  return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
INLINE floats square_root(floats x) { return (floats)vsqrtq_f32((float32x4_t)x); }
INLINE floats of_bytes(const uint8_t *p) { return (floats){(float)p[0], (float)p[1], (float)p[2], (float)p[3]}; }

INLINE floats4 quarters(const floats v[4]) { return (v[0] + v[2]) + (v[1] + v[3]); }

typedef ints mask;
INLINE mask greater(floats a, floats b) { return a > b; }
INLINE ints chosen_ints(mask m, ints a, ints b) { return (a & m) | (b & ~m); }
INLINE floats chosen(mask m, floats a, floats b) { return (floats)chosen_ints(m, (ints)a, (ints)b); }

INLINE void transpose(floats r[LANES]) {
  EXCHANGE(r, 1, (0, 4, 2, 6), (1, 5, 3, 7))
  EXCHANGE(r, 2, (0, 1, 4, 5), (2, 3, 6, 7))
}

enum blocking {
  CONV1_VECTORS = 2,
  CONV2_PLACES = 4,
  CONV2_VECTORS = 4,
  SPAN2_VECTORS = 20,
  LINEAR_VECTORS = 4,
  DOT_INPUTS = 2,
  DOT_IMAGES = 2,
  TAP_VECTORS = 10,
  TAP_FILTERS = 1,
  PRODUCT_VECTORS = 4,
  PRODUCT_ROWS = 4,
};

#include "body.h"

const struct engine qan_neon = {train_network, evaluate_network, train_mlp, evaluate_mlp};
#else
typedef int not_this_processor;
#endif
