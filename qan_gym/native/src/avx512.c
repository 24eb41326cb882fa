// The kernels for AVX-512: 32 registers of 16 floats.
#if defined(__x86_64__)
#include <immintrin.h>

#include "engine.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif

#define LANES 16
#include "vectors.h"

INLINE floats broadcast(float x) { return (floats)_mm512_set1_ps(x); }
INLINE floats fmadd(floats a, floats b, floats c) { return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE floats square_root(floats x) { return (floats)_mm512_sqrt_ps((__m512)x); }
INLINE floats of_bytes(const uint8_t *p) {
  return (floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

INLINE floats4 quarters(const floats v[1]) {
  const __m512 all = (__m512)v[0];
  const __m256 eight = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
  return (floats4)(_mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1));
}

typedef __mmask16 mask;
INLINE mask greater(floats a, floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE ints chosen_ints(mask m, ints a, ints b) { return (ints)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
INLINE floats chosen(mask m, floats a, floats b) { return (floats)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }

INLINE void transpose(floats r[LANES]) {
  EXCHANGE(r, 1, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
           (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
  EXCHANGE(r, 2, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
           (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  EXCHANGE(r, 4, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
           (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
  EXCHANGE(r, 8, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
           (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
}

#include "blocking512.h"

#include "body.h"

const struct engine qan_avx512 = {train_network, evaluate_network, train_mlp, evaluate_mlp};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
typedef int not_this_processor;
#endif
