// exp, log and cos in double precision, for the bookkeeping around the kernels: within 1 ulp, and the same bits on
// every machine, because they consist of IEEE additions, multiplications and divisions alone.
//
// Algorithms and coefficients are those of fdlibm 5.3, which this notice of its goes with: "Copyright (C) 2004 by Sun
// Microsystems, Inc. All rights reserved. Permission to use, copy, modify, and distribute this software is freely
// granted, provided that this notice is preserved."
#include <string.h>

#include "kernels.h"

// log(2), its first 32 bits, whose products by the integers here are exact, and the rest.
static const double LOG2_HIGH = 6.93147180369123816490e-01;
static const double LOG2_LOW = 1.90821492927058770002e-10;

static uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static double of_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^n for normal results.
static double power_of_2(int64_t n) { return of_bits((uint64_t)(n + 1023) << 52); }

// x to the nearest integer, |x| < 2^51.
static double rounded(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }  // 1.5 * 2^52

// x = n log(2) + r, |r| <= log(2) / 2; exp(r) = 1 + 2 r / (R(r^2) - r), R by a polynomial.
static double exp_of(double x) {
  if (x != x) return x;
  if (x > 709.782712893383973096) return 1.0 / 0.0;
  if (x < -745.13321910194110842) return 0.0;
  const double n = rounded(x * 1.44269504088896338700);
  const double high = x - n * LOG2_HIGH, low = n * LOG2_LOW, r = high - low, y = r * r;
  double p = 4.13813679705723846039e-08;
  p = -1.65339022054652515390e-06 + y * p;
  p = 6.61375632143793436117e-05 + y * p;
  p = -2.77777777770155933842e-03 + y * p;
  p = 1.66666666666666019037e-01 + y * p;
  const double c = r - y * p;
  const double result = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  const int64_t half = (int64_t)n / 2;  // in two steps: 2^n alone may be out of range
  return result * power_of_2(half) * power_of_2((int64_t)n - half);
}

// x = 2^n (1 + f), from sqrt(1/2) to sqrt(2); a polynomial in s = f / (2 + f).
static double log_of(double x) {
  if (x != x || x == 1.0 / 0.0) return x;
  if (x == 0) return -1.0 / 0.0;
  if (x < 0) return 0.0 / 0.0;
  const double scaled = x < 2.2250738585072014e-308 ? x * 18014398509481984.0 : x;  // subnormal: times 2^54
  const uint64_t bits = bits_of(scaled);
  const uint64_t above = ((bits >> 32 & 0xfffff) + 0x95f64) & 0x100000;  // the fraction is above sqrt(2): halve it
  const double m = of_bits((bits & 0xfffffffffffff) | ((above ^ 0x3ff00000) << 32));
  const int64_t exponent = (int64_t)(bits >> 52) - 1023 + (int64_t)(above >> 20) - (scaled != x ? 54 : 0);
  const double n = (double)exponent, f = m - 1.0, s = f / (2.0 + f), z = s * s, w = z * z;
  double even = 1.531383769920937332e-01;
  even = 2.222219843214978396e-01 + w * even;
  even = 3.999999999940941908e-01 + w * even;
  double odd = 1.479819860511658591e-01;
  odd = 1.818357216161805012e-01 + w * odd;
  odd = 2.857142874366239149e-01 + w * odd;
  odd = 6.666666666666735130e-01 + w * odd;
  const double half = 0.5 * f * f;
  return n * LOG2_HIGH - ((half - (s * (half + (w * even + z * odd)) + n * LOG2_LOW)) - f);
}

// cos(x + low), |x| <= pi / 4.
static double cos_near_0(double x, double low) {
  const double z = x * x;
  double p = -1.13596475577881948265e-11;
  p = 2.08757232129817482790e-09 + z * p;
  p = -2.75573143513906633035e-07 + z * p;
  p = 2.48015872894767294178e-05 + z * p;
  p = -1.38888888888741095749e-03 + z * p;
  p = 4.16666666666666019037e-02 + z * p;
  const double half = 0.5 * z, first = 1.0 - half;
  return first + (((1.0 - first) - half) + (z * (z * p) - x * low));
}

// sin(x + low), |x| <= pi / 4.
static double sin_near_0(double x, double low) {
  const double z = x * x, v = z * x;
  double p = 1.58969099521155010221e-10;
  p = -2.50507602534068634195e-08 + z * p;
  p = 2.75573137070700676789e-06 + z * p;
  p = -1.98412698298579493134e-04 + z * p;
  p = 8.33333333332248946124e-03 + z * p;
  return x - ((z * (0.5 * low - v * p) - low) - v * -1.66666666666666324348e-01);
}

// x = n pi / 2 + r + low, pi / 2 in pieces of 33 bits, whose products by n are exact. NaN for |x| > 800,000.
static double cos_of(double x) {
  if (!(x <= 8e5 && x >= -8e5)) return 0.0 / 0.0;
  const double n = rounded(x * 6.36619772367581382433e-01);
  const double first = x - n * 1.57079632673412561417e+00;
  const double second_part = n * 6.07710050630396597660e-11, second = first - second_part;
  const double second_error = (first - second) - second_part;
  const double third_part = n * 2.02226624871116645580e-21 - second_error, third = second - third_part;
  const double third_error = (second - third) - third_part;
  const double rest = n * 8.47842766036889956997e-32 - third_error;
  const double r = third - rest, low = (third - r) - rest;
  switch ((int64_t)n & 3) {
    case 0: return cos_near_0(r, low);
    case 1: return -sin_near_0(r, low);
    case 2: return -cos_near_0(r, low);
    default: return sin_near_0(r, low);
  }
}

void qan_exp(const double *x, double *y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = exp_of(x[i]);
}

void qan_log(const double *x, double *y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = log_of(x[i]);
}

void qan_cos(const double *x, double *y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] = cos_of(x[i]);
}

double qan_exp_of(double x) { return exp_of(x); }

double qan_log_of(double x) { return log_of(x); }

double qan_cos_of(double x) { return cos_of(x); }
