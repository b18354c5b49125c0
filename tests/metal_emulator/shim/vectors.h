// Vector types such as float4: components, indexing, arithmetic. There are no swizzles, because text that is shared with
// CUDA has none.
#pragma once
#include "traits.h"

namespace metal {

template <class T, int N>
struct vec;

#define LANES_OPERATOR(op)                                        \
  METAL_FUNC friend vec operator op(vec a, vec b) {               \
    for (int i = 0; i < size; i++) a[i] = static_cast<T>(a[i] op b[i]); \
    return a;                                                     \
  }                                                               \
  METAL_FUNC friend vec& operator op##=(vec& a, vec b) { return a = a op b; }
#define LANES_COMPARISON(op)                                                 \
  METAL_FUNC friend vec<bool, size> operator op(vec a, vec b) {              \
    vec<bool, size> result;                                                  \
    for (int i = 0; i < size; i++) result[i] = a[i] op b[i];                 \
    return result;                                                           \
  }
// Members of all sizes. Integer operators are instantiated only where they are used.
#define LANES_VECTOR(n)                                                                         \
  static constexpr LANES_CONSTANT int size = n;                                                                \
  typedef T scalar_type;                                                                        \
  vec() = default;                                                                              \
  METAL_FUNC T& operator[](int i) { return (&x)[i]; }                                           \
  METAL_FUNC const T& operator[](int i) const { return (&x)[i]; }                               \
  template <class U>                                                                            \
  METAL_FUNC explicit vec(vec<U, n> other) {                                                    \
    for (int i = 0; i < n; i++) (&x)[i] = static_cast<T>(other[i]);                             \
  }                                                                                             \
  LANES_OPERATOR(+) LANES_OPERATOR(-) LANES_OPERATOR(*) LANES_OPERATOR(/) LANES_OPERATOR(%)     \
  LANES_OPERATOR(&) LANES_OPERATOR(|) LANES_OPERATOR(^) LANES_OPERATOR(<<) LANES_OPERATOR(>>)   \
  LANES_COMPARISON(==) LANES_COMPARISON(!=) LANES_COMPARISON(<) LANES_COMPARISON(<=)            \
  LANES_COMPARISON(>) LANES_COMPARISON(>=)                                                      \
  METAL_FUNC friend vec operator-(vec a) {                                                      \
    for (int i = 0; i < n; i++) a[i] = static_cast<T>(-a[i]);                                   \
    return a;                                                                                   \
  }                                                                                             \
  METAL_FUNC friend vec operator~(vec a) {                                                      \
    for (int i = 0; i < n; i++) a[i] = static_cast<T>(~a[i]);                                   \
    return a;                                                                                   \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  METAL_FUNC constexpr vec(T all) : x(all), y(all) {}
  METAL_FUNC constexpr vec(T a, T b) : x(a), y(b) {}
  LANES_VECTOR(2)
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  METAL_FUNC constexpr vec(T all) : x(all), y(all), z(all) {}
  METAL_FUNC constexpr vec(T a, T b, T c) : x(a), y(b), z(c) {}
  LANES_VECTOR(3)
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  METAL_FUNC constexpr vec(T all) : x(all), y(all), z(all), w(all) {}
  METAL_FUNC constexpr vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  METAL_FUNC constexpr vec(vec<T, 2> low, vec<T, 2> high) : x(low.x), y(low.y), z(high.x), w(high.y) {}
  LANES_VECTOR(4)
};
#undef LANES_VECTOR
#undef LANES_COMPARISON
#undef LANES_OPERATOR

template <int N>
METAL_FUNC bool any(vec<bool, N> flags) {
  bool result = false;
  for (int i = 0; i < N; i++) result = result || flags[i];
  return result;
}

template <int N>
METAL_FUNC bool all(vec<bool, N> flags) {
  bool result = true;
  for (int i = 0; i < N; i++) result = result && flags[i];
  return result;
}

}  // namespace metal

#define LANES_NAMES(type, scalar)              \
  namespace metal {                            \
  typedef vec<scalar, 2> type##2;              \
  typedef vec<scalar, 3> type##3;              \
  typedef vec<scalar, 4> type##4;              \
  }                                            \
  using metal::type##2;                        \
  using metal::type##3;                        \
  using metal::type##4;
LANES_NAMES(bool, bool)
LANES_NAMES(char, signed char)
LANES_NAMES(uchar, unsigned char)
LANES_NAMES(short, short)
LANES_NAMES(ushort, unsigned short)
LANES_NAMES(int, int)
LANES_NAMES(uint, unsigned int)
LANES_NAMES(long, long)
LANES_NAMES(ulong, unsigned long)
LANES_NAMES(float, float)
LANES_NAMES(half, half)
LANES_NAMES(bfloat, bfloat)
#undef LANES_NAMES
