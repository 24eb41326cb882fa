// tanh of vectors, exp and log of numbers, in float32; the last bits of the C library's differ from one to another.

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
