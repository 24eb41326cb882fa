// The kernels for AVX2: 16 registers of 8 floats.
#if defined(__x86_64__)
#include <immintrin.h>

#include "engine.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define LANES 8
#include "vectors.h"

INLINE floats broadcast(float x) { return (floats)_mm256_set1_ps(x); }
INLINE floats fmadd(floats a, floats b, floats c) { return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE floats square_root(floats x) { return (floats)_mm256_sqrt_ps((__m256)x); }
INLINE floats of_bytes(const uint8_t *p) {
  return (floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

INLINE floats4 quarters(const floats v[2]) {
  const __m256 eight = (__m256)(v[0] + v[1]);
  return (floats4)(_mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1));
}

typedef ints mask;
INLINE mask greater(floats a, floats b) { return a > b; }
INLINE floats chosen(mask m, floats a, floats b) { return (floats)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
INLINE ints chosen_ints(mask m, ints a, ints b) { return (ints)chosen(m, (floats)a, (floats)b); }

INLINE void transpose(floats r[LANES]) {
  EXCHANGE(r, 1, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
  EXCHANGE(r, 2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
  EXCHANGE(r, 4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
}

enum blocking {
  CONV1_VECTORS = 1,
  CONV2_PLACES = 4,
  CONV2_VECTORS = 2,
  SPAN2_VECTORS = 10,
  LINEAR_VECTORS = 2,
  DOT_INPUTS = 2,
  DOT_IMAGES = 2,
  TAP_VECTORS = 5,
  TAP_FILTERS = 1,
  PRODUCT_VECTORS = 2,
  PRODUCT_ROWS = 4,
};

#include "body.h"

const struct engine qan_avx2 = {train_network, evaluate_network, train_mlp, evaluate_mlp};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int not_this_processor;
#endif
