// metal_simdgroup and the barriers. Every function hands the lane's value to the runtime and waits for its result.
#pragma once
#include "interface.h"

namespace metal {

namespace detail {

template <class T>
struct scalar_kind {
  static constexpr lanes::Scalar value = lanes::Scalar::none;
};
template <class T, int N>
struct scalar_kind<vec<T, N>> : scalar_kind<T> {};
#define LANES_KIND(type, kind)                                    \
  template <>                                                     \
  struct scalar_kind<type> {                                      \
    static constexpr lanes::Scalar value = lanes::Scalar::kind;   \
  };
LANES_KIND(float, f32)
LANES_KIND(half, f16)
LANES_KIND(bfloat, bf16)
LANES_KIND(char, i8)
LANES_KIND(signed char, i8)
LANES_KIND(unsigned char, u8)
LANES_KIND(short, i16)
LANES_KIND(unsigned short, u16)
LANES_KIND(int, i32)
LANES_KIND(unsigned int, u32)
LANES_KIND(long, i64)
LANES_KIND(unsigned long, u64)
#undef LANES_KIND

}  // namespace detail

// Place of the call in the text, for messages.
#define LANES_PLACE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

#define LANES_COLLECTIVE(name, operation, ...)                                                                     \
  T result;                                                                                                        \
  lanes::Call call = {lanes::Operation::operation, detail::scalar_kind<T>::value, sizeof(T), __VA_ARGS__, &result, \
                      #name, file, line};                                                                          \
  lanes::lanes_collective(&call);                                                                                  \
  return result;
#define LANES_OF_VALUE(name, operation)                                   \
  template <class T>                                                      \
  METAL_FUNC T name(T value, LANES_PLACE) {                               \
    LANES_COLLECTIVE(name, operation, 0, &value, nullptr)                 \
  }
#define LANES_WITH_PARAMETER(name, operation)                             \
  template <class T>                                                      \
  METAL_FUNC T name(T value, ushort parameter, LANES_PLACE) {             \
    LANES_COLLECTIVE(name, operation, parameter, &value, nullptr)         \
  }
#define LANES_WITH_FILL(name, operation)                                  \
  template <class T>                                                      \
  METAL_FUNC T name(T value, T fill, ushort parameter, LANES_PLACE) {     \
    LANES_COLLECTIVE(name, operation, parameter, &value, &fill)           \
  }
LANES_WITH_PARAMETER(simd_shuffle, shuffle)
LANES_WITH_PARAMETER(simd_broadcast, shuffle)
LANES_WITH_PARAMETER(simd_shuffle_xor, shuffle_xor)
LANES_WITH_PARAMETER(simd_shuffle_up, shuffle_up)
LANES_WITH_PARAMETER(simd_shuffle_down, shuffle_down)
LANES_WITH_PARAMETER(simd_shuffle_rotate_up, rotate_up)
LANES_WITH_PARAMETER(simd_shuffle_rotate_down, rotate_down)
LANES_WITH_FILL(simd_shuffle_and_fill_up, fill_up)
LANES_WITH_FILL(simd_shuffle_and_fill_down, fill_down)
LANES_OF_VALUE(simd_broadcast_first, broadcast_first)
LANES_OF_VALUE(simd_sum, sum)
LANES_OF_VALUE(simd_product, product)
LANES_OF_VALUE(simd_min, minimum)
LANES_OF_VALUE(simd_max, maximum)
LANES_OF_VALUE(simd_and, bit_and)
LANES_OF_VALUE(simd_or, bit_or)
LANES_OF_VALUE(simd_xor, bit_xor)
LANES_OF_VALUE(simd_prefix_inclusive_sum, inclusive_sum)
LANES_OF_VALUE(simd_prefix_exclusive_sum, exclusive_sum)
LANES_OF_VALUE(simd_prefix_inclusive_product, inclusive_product)
LANES_OF_VALUE(simd_prefix_exclusive_product, exclusive_product)
#undef LANES_WITH_FILL
#undef LANES_WITH_PARAMETER
#undef LANES_OF_VALUE
#undef LANES_COLLECTIVE

#define LANES_VOTE(name, operation, flag)                                                                            \
  bool value = flag;                                                                                                 \
  ulong mask = 0;                                                                                                    \
  lanes::Call call = {lanes::Operation::operation, lanes::Scalar::none, sizeof mask, 0, &value, nullptr, &mask, name, \
                      file, line};                                                                                   \
  lanes::lanes_collective(&call);

struct simd_vote {
  ulong mask;
  explicit operator ulong() const { return mask; }
  bool all() const { return mask == 0xFFFFFFFFul; }
  bool any() const { return mask != 0; }
};
METAL_FUNC simd_vote simd_ballot(bool expression, LANES_PLACE) {
  LANES_VOTE("simd_ballot", ballot, expression)
  return simd_vote{mask};
}
METAL_FUNC simd_vote simd_active_threads_mask(LANES_PLACE) {
  LANES_VOTE("simd_active_threads_mask", active, true)
  return simd_vote{mask};
}
METAL_FUNC bool simd_any(bool expression, LANES_PLACE) {
  LANES_VOTE("simd_any", ballot, expression)
  return mask != 0;
}
METAL_FUNC bool simd_all(bool expression, LANES_PLACE) {
  LANES_VOTE("simd_all", ballot, !expression)
  return mask == 0;
}
METAL_FUNC bool simd_is_first(LANES_PLACE) {
  LANES_VOTE("simd_is_first", active, true)
  return (mask & -mask) == 1ul << lanes::lanes_builtins()->thread_index_in_simdgroup;
}
#undef LANES_VOTE

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<int>(a) | static_cast<int>(b));
}
METAL_FUNC void threadgroup_barrier(mem_flags flags, LANES_PLACE) {
  lanes::lanes_threadgroup_barrier(static_cast<unsigned>(flags), file, line);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, LANES_PLACE) {
  lanes::Call call = {lanes::Operation::barrier, lanes::Scalar::none, 0, static_cast<unsigned>(flags), nullptr, nullptr,
                      nullptr, "simdgroup_barrier", file, line};
  lanes::lanes_collective(&call);
}

}  // namespace metal
