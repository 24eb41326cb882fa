// Random numbers as functions of (seed, purpose, counter), without a state: those of qan_gym.utils.random_streams.
#ifndef QAN_RANDOM_STREAMS_H
#define QAN_RANDOM_STREAMS_H

#include <stdint.h>
#include <string.h>

enum { WEIGHTS_PURPOSE = 1, SHUFFLED_PURPOSE = 4, BY_CLASS_PURPOSE = 5, ORDER_ROUNDS = 16 };

static const uint64_t GAMMA = 0x9E3779B97F4A7C15ULL, MIX1 = 0xBF58476D1CE4E5B9ULL, MIX2 = 0x94D049BB133111EBULL;

static inline uint64_t mix(uint64_t bits) {
  bits = (bits ^ bits >> 30) * MIX1;
  bits = (bits ^ bits >> 27) * MIX2;
  return bits ^ bits >> 31;
}

static inline uint64_t stream_of(int64_t seed, uint64_t purpose, int64_t counter) {
  return mix(mix((uint64_t)seed + purpose * GAMMA) + (uint64_t)counter * GAMMA);
}

// The number `place`, from 0, of a stream.
static inline uint64_t bits_at(uint64_t stream, int64_t place) { return mix(stream + (uint64_t)(place + 1) * GAMMA); }

// --- the order of the images in an epoch

// Place p of n is written as (left, right) on a grid of rows * columns >= n, and passes through rounds that move one of
// the two by a hash of the other: a Feistel network on numbers (Black and Rogaway 2002, "Ciphers with arbitrary finite
// domains"). What falls behind n passes again.
struct order {
  uint32_t keys[ORDER_ROUNDS][2];
  uint32_t total, rows, columns;
};

enum { ORDER_LANES = 8, ORDER_BLOCK = 4 * ORDER_LANES };

// The order of a number, as an epoch's, among those of a purpose; 1 <= total < 2^31.
static inline struct order order_of(int64_t seed, uint64_t purpose, int64_t number, int64_t total) {
  struct order order = {.total = (uint32_t)total, .rows = (uint32_t)__builtin_sqrt((double)total)};
  order.rows += order.rows * order.rows < order.total;
  order.columns = (order.total + order.rows - 1) / order.rows;
  const uint64_t stream = stream_of(seed, purpose, number);
  for (int i = 0; i < ORDER_ROUNDS; i++) {
    const uint64_t bits = bits_at(stream, i);
    order.keys[i][0] = (uint32_t)bits;
    order.keys[i][1] = (uint32_t)(bits >> 32);
  }
  return order;
}

// Vectors in the extensions that gcc and clang share; they become what an instruction set has.
typedef uint32_t lanes __attribute__((vector_size(ORDER_LANES * 4)));
typedef int32_t signed_lanes __attribute__((vector_size(ORDER_LANES * 4)));

// x moved by a hash of `by`, within 0 to count - 1; count < 2^16.
static inline void move(lanes *x, const lanes *by, const uint32_t keys[2], uint32_t count) {
  lanes h = *by + keys[0];
  h = (h ^ h >> 16) * 0x21f0aaadu;
  h = (h ^ h >> 15 ^ keys[1]) * 0x735a2d97u;
  h = *x + ((h >> 16) * count >> 16);
  *x = h - ((lanes)((signed_lanes)h >= (int32_t)count) & count);
}

// A block of places, as left * columns + right, one pass further.
static inline void order_pass(const struct order *order, uint32_t left[ORDER_BLOCK], uint32_t right[ORDER_BLOCK]) {
  enum { VECTORS = ORDER_BLOCK / ORDER_LANES };  // together, because each waits for its own last result
  lanes l[VECTORS], r[VECTORS];
  memcpy(l, left, sizeof l);
  memcpy(r, right, sizeof r);
  for (int i = 0; i < ORDER_ROUNDS; i += 2) {
    for (int v = 0; v < VECTORS; v++) move(l + v, r + v, order->keys[i], order->rows);
    for (int v = 0; v < VECTORS; v++) move(r + v, l + v, order->keys[i + 1], order->columns);
  }
  memcpy(left, l, sizeof l);
  memcpy(right, r, sizeof r);
}

// The indices at `count` places from `first` on.
static inline void order_from(const struct order *order, int64_t first, int64_t count, int64_t *indices) {
  uint32_t row = (uint32_t)first / order->columns, column = (uint32_t)first % order->columns;
  for (int64_t i = 0; i < count; i += ORDER_BLOCK) {
    uint32_t left[ORDER_BLOCK], right[ORDER_BLOCK];
    for (int j = 0; j < ORDER_BLOCK; j++) {
      left[j] = row;
      right[j] = column++;
      if (column == order->columns) column = 0, row++;
    }
    order_pass(order, left, right);
    for (int j = 0; j < ORDER_BLOCK && i + j < count; j++) {
      uint32_t at = left[j] * order->columns + right[j];
      while (at >= order->total) {
        uint32_t l[ORDER_BLOCK] = {at / order->columns}, r[ORDER_BLOCK] = {at % order->columns};
        order_pass(order, l, r);
        at = l[0] * order->columns + r[0];
      }
      indices[i + j] = (int64_t)at;
    }
  }
}

// What `move` does, of one number.
static inline uint32_t moved(uint32_t x, uint32_t by, const uint32_t keys[2], uint32_t count) {
  uint32_t h = by + keys[0];
  h = (h ^ h >> 16) * 0x21f0aaadu;
  h = (h ^ h >> 15 ^ keys[1]) * 0x735a2d97u;
  h = x + ((h >> 16) * count >> 16);
  return h >= count ? h - count : h;
}

// The index at one place: for a few of them faster than a block.
static inline int64_t order_at(const struct order *order, int64_t place) {
  uint32_t at = (uint32_t)place;
  do {
    uint32_t left = at / order->columns, right = at % order->columns;
    for (int i = 0; i < ORDER_ROUNDS; i += 2) {
      left = moved(left, right, order->keys[i], order->rows);
      right = moved(right, left, order->keys[i + 1], order->columns);
    }
    at = left * order->columns + right;
  } while (at >= order->total);
  return (int64_t)at;
}

// --- normal numbers, by Box and Muller, within 1e-9; the same bits on every machine

static const double TWO_PI = 6.283185307179586, SQRT_HALF = 0.7071067811865476, LOG_2 = 0.6931471805599453;

// log(x) of normal 0 < x <= 1.
static inline double log_of_uniform(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  double exponent = (double)((int64_t)(bits >> 52) - 1022), m;
  bits = (bits & 0xfffffffffffffULL) | 0x3fe0000000000000ULL;
  memcpy(&m, &bits, sizeof m);
  if (m < SQRT_HALF) m *= 2, exponent -= 1;
  const double s = (m - 1) / (m + 1), y = s * s;
  double p = 1.0 / 13;
  p = p * y + 1.0 / 11;
  p = p * y + 1.0 / 9;
  p = p * y + 1.0 / 7;
  p = p * y + 1.0 / 5;
  p = p * y + 1.0 / 3;
  p = p * y + 1.0;
  return exponent * LOG_2 + 2 * s * p;
}

// cos(2 pi x), 0 <= x < 1.
static inline double cos_of_turn(double x) {
  const int64_t quarter = (int64_t)(4 * x + 0.5);
  const double t = (x - (double)quarter * 0.25) * TWO_PI, y = t * t;
  double c = 1.0 / 479001600;
  c = c * y - 1.0 / 3628800;
  c = c * y + 1.0 / 40320;
  c = c * y - 1.0 / 720;
  c = c * y + 1.0 / 24;
  c = c * y - 0.5;
  c = c * y + 1.0;
  double s = 1.0 / 6227020800;
  s = s * y - 1.0 / 39916800;
  s = s * y + 1.0 / 362880;
  s = s * y - 1.0 / 5040;
  s = s * y + 1.0 / 120;
  s = s * y - 1.0 / 6;
  s = s * y + 1.0;
  const double value = quarter & 1 ? s * t : c;
  return (quarter + 1) & 2 ? -value : value;
}

// The number `place` of `count` in a stream.
static inline double normal_at(uint64_t stream, int64_t place, int64_t count) {
  const double first = (double)((bits_at(stream, place) >> 11) + 1) * 0x1p-53;
  const double second = (double)(bits_at(stream, count + place) >> 11) * 0x1p-53;
  return __builtin_sqrt(-2 * log_of_uniform(first)) * cos_of_turn(second);
}

#endif
