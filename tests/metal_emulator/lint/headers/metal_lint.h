// Declarations of Metal's library for clang's C++ for OpenCL, which has the same address spaces. Nothing here runs. It
// only makes wrong kernel text fail to compile.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

#define METAL_FUNC inline
#define LANES_CONSTANT __constant

struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit constexpr bfloat(float) : bits(0) {}
  explicit constexpr bfloat(half) : bits(0) {}
  explicit constexpr bfloat(int) : bits(0) {}
  explicit constexpr bfloat(uint) : bits(0) {}
#define LANES_FROM(space) operator float() const space;
  LANES_FROM(__private)
  LANES_FROM(__global)
  LANES_FROM(__constant)
  LANES_FROM(__local)
#undef LANES_FROM
};
#define LANES_OPERATOR(op)                 \
  bfloat operator op(bfloat, bfloat);      \
  bfloat operator op(bfloat, int) = delete; \
  bfloat operator op(int, bfloat) = delete;
LANES_OPERATOR(+)
LANES_OPERATOR(-)
LANES_OPERATOR(*)
LANES_OPERATOR(/)
#undef LANES_OPERATOR
typedef half float16_t;
typedef bfloat bfloat16_t;
struct complex64_t {
  float real, imag;
};

#include "traits.h"
#include "vectors.h"

template <class T, class U>
T as_type(U);

namespace metal {

#define LANES_UNARY(name) \
  template <class T>      \
  T name(T);
#define LANES_BINARY(name) \
  template <class T>       \
  T name(T, T);
#define LANES_FUNCTIONS                                                                                        \
  LANES_UNARY(sqrt) LANES_UNARY(rsqrt) LANES_UNARY(fabs) LANES_UNARY(floor) LANES_UNARY(ceil) LANES_UNARY(trunc) \
  LANES_UNARY(rint) LANES_UNARY(round) LANES_UNARY(exp) LANES_UNARY(exp2) LANES_UNARY(log) LANES_UNARY(log2)     \
  LANES_UNARY(log10) LANES_UNARY(sin) LANES_UNARY(cos) LANES_UNARY(tanh) LANES_BINARY(pow) LANES_BINARY(powr)    \
  LANES_BINARY(divide)
LANES_FUNCTIONS
namespace precise {
LANES_FUNCTIONS
}
namespace fast {
LANES_FUNCTIONS
}
LANES_UNARY(sign) LANES_UNARY(saturate) LANES_UNARY(abs)
LANES_BINARY(fmin) LANES_BINARY(fmax) LANES_BINARY(min) LANES_BINARY(max) LANES_BINARY(copysign) LANES_BINARY(fmod)
LANES_BINARY(step) LANES_BINARY(atan2)
template <class T>
bool isnan(T);
template <class T>
bool isinf(T);
template <class T>
bool isfinite(T);
template <class T>
bool signbit(T);
template <class T>
T ldexp(T, int);
template <class T>
T mix(T, T, T);
template <class T>
T fma(T, T, T);
template <class T>
T clamp(T, T, T);
template <class T>
T select(T, T, bool);
template <class T, int N>
vec<T, N> select(vec<T, N>, vec<T, N>, vec<bool, N>);
template <class T, int N>
T dot(vec<T, N>, vec<T, N>);

uint popcount(uint);
uint clz(uint);
uint ctz(uint);
uint mulhi(uint, uint);
uint rotate(uint, uint);
uint extract_bits(uint, uint, uint);
uint insert_bits(uint, uint, uint, uint);
uint reverse_bits(uint);

#define LANES_SHUFFLE(name) \
  template <class T>        \
  T name(T, ushort);
LANES_SHUFFLE(simd_shuffle) LANES_SHUFFLE(simd_broadcast) LANES_SHUFFLE(simd_shuffle_xor)
LANES_SHUFFLE(simd_shuffle_up) LANES_SHUFFLE(simd_shuffle_down)
LANES_SHUFFLE(simd_shuffle_rotate_up) LANES_SHUFFLE(simd_shuffle_rotate_down)
template <class T>
T simd_shuffle_and_fill_up(T, T, ushort);
template <class T>
T simd_shuffle_and_fill_down(T, T, ushort);
LANES_UNARY(simd_broadcast_first) LANES_UNARY(simd_sum) LANES_UNARY(simd_product) LANES_UNARY(simd_min)
LANES_UNARY(simd_max) LANES_UNARY(simd_and) LANES_UNARY(simd_or) LANES_UNARY(simd_xor)
LANES_UNARY(simd_prefix_inclusive_sum) LANES_UNARY(simd_prefix_exclusive_sum)
LANES_UNARY(simd_prefix_inclusive_product) LANES_UNARY(simd_prefix_exclusive_product)
struct simd_vote {
  ulong mask;
  bool all() const;
  bool any() const;
};
simd_vote simd_ballot(bool);
simd_vote simd_active_threads_mask();
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();
#undef LANES_SHUFFLE
#undef LANES_FUNCTIONS
#undef LANES_BINARY
#undef LANES_UNARY

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
#define LANES_ATOMIC(space)                                                                        \
  template <class T> T atomic_load_explicit(const space atomic<T>*, memory_order);                 \
  template <class T, class U> void atomic_store_explicit(space atomic<T>*, U, memory_order);       \
  template <class T, class U> T atomic_exchange_explicit(space atomic<T>*, U, memory_order);       \
  template <class T, class U> T atomic_fetch_add_explicit(space atomic<T>*, U, memory_order);      \
  template <class T, class U> T atomic_fetch_max_explicit(space atomic<T>*, U, memory_order);      \
  template <class T, class U> T atomic_fetch_min_explicit(space atomic<T>*, U, memory_order);      \
  template <class T, class U> T atomic_fetch_or_explicit(space atomic<T>*, U, memory_order);
LANES_ATOMIC(__global)
LANES_ATOMIC(__local)
#undef LANES_ATOMIC

}  // namespace metal

// Replaces a threadgroup variable, which only OpenCL's own kernels may declare.
template <class T>
__local T& lint_threadgroup_variable();

using namespace metal;

#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
