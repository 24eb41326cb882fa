// tanh, exp, log and GELU in float32; the last bits of the C library's differ from one to another.

// A rational approximation of Eigen's; 1 beyond +-7.9.
INLINE floats tanh_of(floats x) {
  const floats limit = broadcast(7.90531110763549805f);
  x = chosen(greater(x, limit), limit, x);
  x = chosen(greater(-limit, x), -limit, x);
  const floats y = x * x;
  floats p = fmadd(y, broadcast(-2.76076847742355e-16f), broadcast(2.00018790482477e-13f));
  p = fmadd(y, p, broadcast(-8.60467152213735e-11f));
  p = fmadd(y, p, broadcast(5.12229709037114e-08f));
  p = fmadd(y, p, broadcast(1.48572235717979e-05f));
  p = fmadd(y, p, broadcast(6.37261928875436e-04f));
  p = fmadd(y, p, broadcast(4.89352455891786e-03f));
  floats q = fmadd(y, broadcast(1.19825839466702e-06f), broadcast(1.18534705686654e-04f));
  q = fmadd(y, q, broadcast(2.26843463243900e-03f));
  q = fmadd(y, q, broadcast(4.89352518554385e-03f));
  return p * x / q;
}

static const float LOG2_HIGH = 0.693145751953125f;  // log(2), its first 17 bits
static const float LOG2_LOW = 1.42860682030941723e-6f;

// exp(x) for x <= 0: x = n log(2) + r, and a polynomial in r. 0 below -87.
INLINE float exp_of(float x) {
  if (!(x > -87.0f)) return x != x ? x : 0.0f;
  const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to an integer: 12582912 = 1.5 * 2^23
  float r = __builtin_fmaf(-n, LOG2_HIGH, x);
  r = __builtin_fmaf(-n, LOG2_LOW, r);
  float p = __builtin_fmaf(r, 1.0f / 5040, 1.0f / 720);
  p = __builtin_fmaf(r, p, 1.0f / 120);
  p = __builtin_fmaf(r, p, 1.0f / 24);
  p = __builtin_fmaf(r, p, 1.0f / 6);
  p = __builtin_fmaf(r, p, 0.5f);
  p = __builtin_fmaf(r, p, 1.0f);
  p = __builtin_fmaf(r, p, 1.0f);
  const int32_t bits = ((int32_t)n + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

// log(x) for finite x >= 1; others come back as they are. x = 2^e m, and a series in (m - 1) / (m + 1).
INLINE float log_of(float x) {
  if (!(x < 3e38f)) return x;
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // so that m is from sqrt(1/2) to sqrt(2)
  bits -= exponent * (1 << 23);
  float m;
  memcpy(&m, &bits, sizeof m);
  const float t = (m - 1.0f) / (m + 1.0f), y = t * t, e = (float)exponent;
  float p = __builtin_fmaf(y, 1.0f / 11, 1.0f / 9);
  p = __builtin_fmaf(y, p, 1.0f / 7);
  p = __builtin_fmaf(y, p, 1.0f / 5);
  p = __builtin_fmaf(y, p, 1.0f / 3);
  const float series = __builtin_fmaf(2.0f * t * y, p, 2.0f * t);
  return __builtin_fmaf(e, LOG2_HIGH, __builtin_fmaf(e, LOG2_LOW, series));
}

// `exp_of` of vectors: exp(x) for x <= 0.
INLINE floats exps_of(floats x) {
  const floats magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const floats shifted = x * broadcast(1.44269504f) + magic, n = shifted - magic;
  floats r = fmadd(-n, broadcast(LOG2_HIGH), x);
  r = fmadd(-n, broadcast(LOG2_LOW), r);
  floats p = fmadd(r, broadcast(1.0f / 5040), broadcast(1.0f / 720));
  p = fmadd(r, p, broadcast(1.0f / 120));
  p = fmadd(r, p, broadcast(1.0f / 24));
  p = fmadd(r, p, broadcast(1.0f / 6));
  p = fmadd(r, p, broadcast(0.5f));
  p = fmadd(r, p, broadcast(1.0f));
  p = fmadd(r, p, broadcast(1.0f));
  const floats power = (floats)(((unsigneds)shifted << 23) + (127u << 23));
  return chosen(greater(broadcast(-87.0f), x), (floats){0}, p * power);
}

// `log_of` of vectors.
INLINE floats logs_of(floats x) {
  const ints exponent = (ints)((unsigneds)x - 0x3f3504f3u) >> 23;
  const floats m = (floats)((unsigneds)x - ((unsigneds)exponent << 23)), e = __builtin_convertvector(exponent, floats);
  const floats one = broadcast(1.0f), t = (m - one) / (m + one), y = t * t;
  floats p = fmadd(y, broadcast(1.0f / 11), broadcast(1.0f / 9));
  p = fmadd(y, p, broadcast(1.0f / 7));
  p = fmadd(y, p, broadcast(1.0f / 5));
  p = fmadd(y, p, broadcast(1.0f / 3));
  const floats series = fmadd(broadcast(2.0f) * t * y, p, broadcast(2.0f) * t);
  const floats result = fmadd(e, broadcast(LOG2_HIGH), fmadd(e, broadcast(LOG2_LOW), series));
  return chosen(greater(broadcast(3e38f), x), result, x);
}

INLINE floats absolute(floats x) { return chosen(greater((floats){0}, x), -x, x); }

// tanh(x) and its slope 1 - tanh(x)^2, both within a few units of the last place, by exp(-2 |x|); near 0 by a series.
INLINE floats tanh_and_slope(floats x, floats *slope) {
  const floats one = broadcast(1.0f), e = exps_of(broadcast(-2.0f) * absolute(x)), r = one / (one + e), y = x * x;
  *slope = broadcast(4.0f) * e * r * r;
  floats p = fmadd(y, broadcast(62.0f / 2835), broadcast(-17.0f / 315));
  p = fmadd(y, p, broadcast(2.0f / 15));
  p = fmadd(y, p, broadcast(-1.0f / 3));
  const floats far = (one - e) * r, near = fmadd(x * y, p, x);
  return chosen(greater(broadcast(0.25f), absolute(x)), near, chosen(greater((floats){0}, x), -far, far));
}

// GELU by tanh (Hendrycks and Gimpel 2016), x / 2 (1 + tanh(z)) = x / (1 + exp(-2 z)), z = c (x + 0.044715 x^3), and its
// slope. Beyond +-10 it is x or 0.
INLINE floats gelu_and_slope(floats x, floats *slope) {
  const floats c = broadcast(0.797884560802865f), cubic = broadcast(0.044715f), one = broadcast(1.0f);
  const floats limit = broadcast(10.0f), below = chosen(greater(x, limit), limit, x);
  const floats u = chosen(greater(-limit, below), -limit, below), y = u * u;
  const floats z = c * fmadd(cubic * y, u, u), inner = c * fmadd(broadcast(3.0f) * cubic, y, one);
  const floats e = exps_of(broadcast(-2.0f) * absolute(z)), r = one / (one + e);
  const floats share = chosen(greater((floats){0}, z), e * r, r);
  *slope = fmadd(u * inner, broadcast(2.0f) * e * r * r, share);
  return x * share;
}
