// In the place of avx512.c: vectors of 16 floats as two of AVX2, so that a processor without AVX-512 can check that results
// do not depend on the length of vectors. Compiled with -D'__builtin_cpu_supports(name)=1'.
#include <immintrin.h>

#include "engine.h"

#pragma GCC target("avx2,fma")

#define LANES 16
#include "vectors.h"

INLINE floats broadcast(float x) { return (floats){0} + x; }
INLINE floats fmadd(floats a, floats b, floats c) {
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; i++) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  memcpy(&c, z, sizeof c);
  return c;
}
INLINE floats square_root(floats x) {
  for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
INLINE floats of_bytes(const uint8_t *p) {
  floats v;
  for (int i = 0; i < LANES; i++) v[i] = (float)p[i];
  return v;
}

INLINE floats4 quarters(const floats v[1]) {
  floats4 four;
  for (int i = 0; i < 4; i++) four[i] = (v[0][i] + v[0][i + 8]) + (v[0][i + 4] + v[0][i + 12]);
  return four;
}

typedef ints mask;
INLINE mask greater(floats a, floats b) { return a > b; }
INLINE ints chosen_ints(mask m, ints a, ints b) { return (a & m) | (b & ~m); }
INLINE floats chosen(mask m, floats a, floats b) { return (floats)chosen_ints(m, (ints)a, (ints)b); }
INLINE void transpose(floats r[LANES]) {
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < i; j++) {
      const float x = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = x;
    }
}

#include "blocking512.h"

#include "body.h"

const struct engine qan_avx512 = {train_network, evaluate_network, train_mlp, evaluate_mlp};
