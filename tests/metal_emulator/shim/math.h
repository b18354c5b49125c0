// metal_math: float is the C library's function, correctly rounded where Metal's precise one is; half and bfloat go
// through float. metal::fast is the same here, because a CPU cannot show how a GPU differs.
#pragma once

namespace metal {

#define LANES_UNARY(name, expression)                                                            \
  METAL_FUNC float name(float x) { return expression; }                                          \
  METAL_FUNC half name(half value) {                                                             \
    float x = static_cast<float>(value);                                                         \
    return static_cast<half>(expression);                                                        \
  }                                                                                              \
  METAL_FUNC bfloat name(bfloat value) {                                                         \
    float x = static_cast<float>(value);                                                         \
    return bfloat(expression);                                                                   \
  }                                                                                              \
  template <class T, int N>                                                                      \
  METAL_FUNC vec<T, N> name(vec<T, N> values) {                                                  \
    for (int i = 0; i < N; i++) values[i] = name(values[i]);                                     \
    return values;                                                                               \
  }
#define LANES_FUNCTIONS                                                                          \
  LANES_UNARY(sqrt, __builtin_sqrtf(x))                                                          \
  LANES_UNARY(rsqrt, static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(x))))           \
  LANES_UNARY(fabs, __builtin_fabsf(x))                                                          \
  LANES_UNARY(floor, __builtin_floorf(x))                                                        \
  LANES_UNARY(ceil, __builtin_ceilf(x))                                                          \
  LANES_UNARY(trunc, __builtin_truncf(x))                                                        \
  LANES_UNARY(rint, __builtin_rintf(x))                                                          \
  LANES_UNARY(round, __builtin_roundf(x))                                                        \
  LANES_UNARY(exp, __builtin_expf(x))                                                            \
  LANES_UNARY(exp2, __builtin_exp2f(x))                                                          \
  LANES_UNARY(log, __builtin_logf(x))                                                            \
  LANES_UNARY(log2, __builtin_log2f(x))                                                          \
  LANES_UNARY(log10, __builtin_log10f(x))                                                        \
  LANES_UNARY(sin, __builtin_sinf(x))                                                            \
  LANES_UNARY(cos, __builtin_cosf(x))                                                            \
  LANES_UNARY(tanh, __builtin_tanhf(x))                                                          \
  METAL_FUNC float pow(float a, float b) { return __builtin_powf(a, b); }                        \
  METAL_FUNC float powr(float a, float b) { return __builtin_powf(a, b); }                       \
  METAL_FUNC float divide(float a, float b) { return a / b; }
LANES_FUNCTIONS
namespace precise {
LANES_FUNCTIONS
}
namespace fast {
LANES_FUNCTIONS
}
LANES_UNARY(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x == 0 ? x : 0.0f)
LANES_UNARY(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
#undef LANES_FUNCTIONS
#undef LANES_UNARY

METAL_FUNC bool isnan(float x) { return __builtin_isnan(x); }
METAL_FUNC bool isinf(float x) { return __builtin_isinf(x); }
METAL_FUNC bool isfinite(float x) { return __builtin_isfinite(x); }
METAL_FUNC bool signbit(float x) { return __builtin_signbit(x); }

METAL_FUNC float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }
METAL_FUNC float copysign(float a, float b) { return __builtin_copysignf(a, b); }
METAL_FUNC float atan2(float a, float b) { return __builtin_atan2f(a, b); }
METAL_FUNC float fmod(float a, float b) { return __builtin_fmodf(a, b); }
METAL_FUNC float mix(float a, float b, float t) { return a + (b - a) * t; }
METAL_FUNC float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }

METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// The product of two halves and its sum with a third are both exact in double, so this rounds once.
METAL_FUNC half fma(half a, half b, half c) {
  return static_cast<half>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
}
template <class T, int N>
METAL_FUNC vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  for (int i = 0; i < N; i++) a[i] = fma(a[i], b[i], c[i]);
  return a;
}

METAL_FUNC float fmin(float a, float b) { return __builtin_fminf(a, b); }
METAL_FUNC float fmax(float a, float b) { return __builtin_fmaxf(a, b); }
METAL_FUNC float min(float a, float b) { return __builtin_fminf(a, b); }
METAL_FUNC float max(float a, float b) { return __builtin_fmaxf(a, b); }
METAL_FUNC half min(half a, half b) { return static_cast<half>(__builtin_fminf(a, b)); }
METAL_FUNC half max(half a, half b) { return static_cast<half>(__builtin_fmaxf(a, b)); }
METAL_FUNC bfloat min(bfloat a, bfloat b) { return bfloat(__builtin_fminf(a, b)); }
METAL_FUNC bfloat max(bfloat a, bfloat b) { return bfloat(__builtin_fmaxf(a, b)); }
METAL_FUNC float abs(float x) { return __builtin_fabsf(x); }
METAL_FUNC half abs(half x) { return static_cast<half>(__builtin_fabsf(x)); }
METAL_FUNC bfloat abs(bfloat x) { return bfloat(__builtin_fabsf(x)); }

template <class T>
METAL_FUNC T select(T otherwise, T chosen, bool condition) {
  return condition ? chosen : otherwise;
}
template <class T, int N>
METAL_FUNC vec<T, N> select(vec<T, N> otherwise, vec<T, N> chosen, vec<bool, N> conditions) {
  for (int i = 0; i < N; i++) otherwise[i] = conditions[i] ? chosen[i] : otherwise[i];
  return otherwise;
}

template <class T, int N>
METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
  T total = a[0] * b[0];
  for (int i = 1; i < N; i++) total = total + a[i] * b[i];
  return total;
}

}  // namespace metal
