// Vectors of LANES floats in the extensions that gcc and clang share. What an instruction set has to add: `broadcast`,
// `fmadd`, `square_root`, `of_bytes`, `quarters`, `mask`, `greater`, `chosen`, `chosen_ints`, `transpose`, and its blocking.
//
// The bits of a result do not depend on LANES: a sum runs along one lane, in the order of the loop, or over 16 lanes
// (`sum_of_16`). Products are added by `fmadd`, which rounds once, and the compiler is told to fuse nothing itself.

typedef float floats __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t unsigneds __attribute__((vector_size(LANES * 4)));
typedef uint16_t shorts __attribute__((vector_size(LANES * 2)));
typedef float floats4 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#define KEEP_OUT static __attribute__((noinline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("clang loop unroll(disable)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 20")
#define ROLLED _Pragma("GCC unroll 1")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

INLINE floats load(const float *p) {
  floats v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(float *p, floats v) { memcpy(p, &v, sizeof v); }

INLINE void store_shorts(uint16_t *p, ints v) {
  shorts s = __builtin_convertvector(v, shorts);
  memcpy(p, &s, sizeof s);
}

// The first `count` floats; in the other lanes 0.
INLINE floats load_part(const float *p, int64_t count) {
  if (count >= LANES) return load(p);
  float part[LANES] = {0};
  for (int64_t i = 0; i < count; i++) part[i] = p[i];
  return load(part);
}

INLINE void store_part(float *p, floats v, int64_t count) {
  if (count >= LANES) {
    store(p, v);
    return;
  }
  float part[LANES];
  store(part, v);
  for (int64_t i = 0; i < count; i++) p[i] = part[i];
}

// A gradient, or its part of one chunk more.
INLINE void put(float *gradient, floats value, int64_t count, int add) {
  store_part(gradient, add ? load_part(gradient, count) + value : value, count);
}

// (0 + 8) + (4 + 12), (1 + 9) + (5 + 13) and so on of 16 floats, in registers.
INLINE floats4 quarters(const floats v[16 / LANES]);

// The sum of 16 floats, always in the same order.
INLINE float sum_of_16(const floats v[16 / LANES]) {
  const floats4 four = quarters(v);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// One step of the transposition of LANES x LANES: r[i] and r[i + d] exchange their off-diagonal blocks of d x d.
#define LIST(...) __VA_ARGS__
#define EXCHANGE(r, d, upper, lower)             \
  UNROLL for (int i = 0; i < LANES; i++) {       \
    if (i & (d)) continue;                       \
    const floats a = r[i], b = r[i + (d)];       \
    r[i] = SHUFFLE(a, b, LIST upper);            \
    r[i + (d)] = SHUFFLE(a, b, LIST lower);      \
  }
