// metal_integer, and what it shares with the floating-point functions.
#pragma once

namespace metal {

#define LANES_INTEGER template <class T, class = enable_if_t<is_integral_v<T>>> METAL_FUNC T
LANES_INTEGER abs(T x) { return x < 0 ? -x : x; }
LANES_INTEGER min(T a, T b) { return b < a ? b : a; }
LANES_INTEGER max(T a, T b) { return a < b ? b : a; }
#undef LANES_INTEGER

#define LANES_VECTORISED(name)                                                   \
  template <class T, int N>                                                      \
  METAL_FUNC vec<T, N> name(vec<T, N> a, vec<T, N> b) {                          \
    for (int i = 0; i < N; i++) a[i] = name(a[i], b[i]);                         \
    return a;                                                                    \
  }
LANES_VECTORISED(min)
LANES_VECTORISED(max)
#undef LANES_VECTORISED
template <class T, int N>
METAL_FUNC vec<T, N> abs(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = abs(a[i]);
  return a;
}
template <class T>
METAL_FUNC T clamp(T x, T low, T high) {
  return min(max(x, low), high);
}

METAL_FUNC uint popcount(uint x) { return static_cast<uint>(__builtin_popcount(x)); }
METAL_FUNC uint clz(uint x) { return x ? static_cast<uint>(__builtin_clz(x)) : 32u; }
METAL_FUNC uint ctz(uint x) { return x ? static_cast<uint>(__builtin_ctz(x)) : 32u; }
METAL_FUNC uint mulhi(uint a, uint b) { return static_cast<uint>((static_cast<ulong>(a) * b) >> 32); }
METAL_FUNC uint rotate(uint x, uint n) { return (x << (n & 31u)) | (x >> (-n & 31u)); }
METAL_FUNC uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 0 ? 0 : (x >> offset) & (bits >= 32 ? ~0u : (1u << bits) - 1);
}
METAL_FUNC uint insert_bits(uint base, uint inserted, uint offset, uint bits) {
  uint mask = bits == 0 ? 0 : (bits >= 32 ? ~0u : (1u << bits) - 1) << offset;
  return (base & ~mask) | ((inserted << offset) & mask);
}
METAL_FUNC uint reverse_bits(uint x) {
  uint result = 0;
  for (int i = 0; i < 32; i++) result |= ((x >> i) & 1u) << (31 - i);
  return result;
}

}  // namespace metal
