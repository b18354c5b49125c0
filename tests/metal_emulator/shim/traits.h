// metal_type_traits and metal_limits.
#pragma once

// Marks a constant as in the constant address space, if the compiler has address spaces.
#if !defined(LANES_CONSTANT)
#define LANES_CONSTANT
#endif

namespace metal {

template <class T, T v>
struct integral_constant {
  static constexpr LANES_CONSTANT T value = v;
  constexpr operator T() const { return v; }
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;

template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class A, class B>
constexpr LANES_CONSTANT bool is_same_v = is_same<A, B>::value;

template <bool condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool condition, class T = void>
using enable_if_t = typename enable_if<condition, T>::type;

template <bool condition, class A, class B>
struct conditional {
  typedef A type;
};
template <class A, class B>
struct conditional<false, A, B> {
  typedef B type;
};
template <bool condition, class A, class B>
using conditional_t = typename conditional<condition, A, B>::type;

template <class T>
struct is_integral : false_type {};
template <class T>
struct is_floating_point : false_type {};
#define LANES_TRAIT(trait, type) \
  template <>                    \
  struct trait<type> : true_type {};
LANES_TRAIT(is_integral, bool)
LANES_TRAIT(is_integral, char)
LANES_TRAIT(is_integral, signed char)
LANES_TRAIT(is_integral, unsigned char)
LANES_TRAIT(is_integral, short)
LANES_TRAIT(is_integral, unsigned short)
LANES_TRAIT(is_integral, int)
LANES_TRAIT(is_integral, unsigned)
LANES_TRAIT(is_integral, long)
LANES_TRAIT(is_integral, unsigned long)
LANES_TRAIT(is_floating_point, float)
LANES_TRAIT(is_floating_point, half)
LANES_TRAIT(is_floating_point, bfloat)
#undef LANES_TRAIT
template <class T>
constexpr LANES_CONSTANT bool is_integral_v = is_integral<T>::value;
template <class T>
constexpr LANES_CONSTANT bool is_floating_point_v = is_floating_point<T>::value;

template <class T>
struct numeric_limits;
#define LANES_LIMITS(type, lowest_value, largest, smallest, step, inf, nan)      \
  template <>                                                                    \
  struct numeric_limits<type> {                                                  \
    static constexpr type lowest() { return static_cast<type>(lowest_value); }   \
    static constexpr type max() { return static_cast<type>(largest); }           \
    static constexpr type min() { return static_cast<type>(smallest); }          \
    static constexpr type epsilon() { return static_cast<type>(step); }          \
    static constexpr type infinity() { return static_cast<type>(inf); }          \
    static constexpr type quiet_NaN() { return static_cast<type>(nan); }         \
  };
#define LANES_FLOAT_LIMITS(type, largest, smallest, step) \
  LANES_LIMITS(type, -largest, largest, smallest, step, __builtin_inff(), __builtin_nanf(""))
#define LANES_INTEGER_LIMITS(type, smallest, largest) LANES_LIMITS(type, smallest, largest, smallest, 0, 0, 0)
LANES_FLOAT_LIMITS(float, __FLT_MAX__, __FLT_MIN__, __FLT_EPSILON__)
LANES_FLOAT_LIMITS(half, 65504.0f, 6.103515625e-5f, 9.765625e-4f)
LANES_FLOAT_LIMITS(bfloat, 3.3895313892515355e38f, __FLT_MIN__, 7.8125e-3f)
LANES_INTEGER_LIMITS(int8_t, -128, 127)
LANES_INTEGER_LIMITS(uint8_t, 0, 255)
LANES_INTEGER_LIMITS(int16_t, -32768, 32767)
LANES_INTEGER_LIMITS(uint16_t, 0, 65535)
LANES_INTEGER_LIMITS(int32_t, -__INT32_MAX__ - 1, __INT32_MAX__)
LANES_INTEGER_LIMITS(uint32_t, 0, __UINT32_MAX__)
LANES_INTEGER_LIMITS(int64_t, -__INT64_MAX__ - 1, __INT64_MAX__)
LANES_INTEGER_LIMITS(uint64_t, 0, __UINT64_MAX__)
#undef LANES_INTEGER_LIMITS
#undef LANES_FLOAT_LIMITS
#undef LANES_LIMITS

}  // namespace metal
