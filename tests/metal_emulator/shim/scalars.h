// half and bfloat.
#pragma once

#if !defined(__FLT16_MAX__)
#error "no _Float16 here: kernels need g++ 12, clang++ 15 or an arm64 compiler"
#endif
typedef _Float16 half;

// Converts to float implicitly, and from float explicitly. Each operation on two values rounds to nearest even.
struct bfloat {
  uint16_t bits;

  bfloat() = default;
  METAL_FUNC explicit constexpr bfloat(float value) : bits(round(value)) {}
  template <class T>
  METAL_FUNC explicit constexpr bfloat(T value) : bits(round(static_cast<float>(value))) {}
  METAL_FUNC constexpr operator float() const { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

  static constexpr uint16_t round(float value) {
    uint32_t wide = __builtin_bit_cast(uint32_t, value);
    bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? (wide >> 16) | 0x40u : (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
};

#define LANES_OPERATOR(op)                                                                        \
  METAL_FUNC constexpr bfloat operator op(bfloat a, bfloat b) {                                   \
    return bfloat(static_cast<float>(a) op static_cast<float>(b));                                \
  }                                                                                               \
  METAL_FUNC bfloat& operator op##=(bfloat& a, bfloat b) { return a = a op b; }                   \
  /* Metal rounds an integer to bfloat first, C++ would compute in float: write the cast. */      \
  template <class Integer, class = decltype(Integer() % 1)>                                       \
  bfloat operator op(bfloat, Integer) = delete;                                                   \
  template <class Integer, class = decltype(Integer() % 1)>                                       \
  bfloat operator op(Integer, bfloat) = delete;
LANES_OPERATOR(+)
LANES_OPERATOR(-)
LANES_OPERATOR(*)
LANES_OPERATOR(/)
#undef LANES_OPERATOR
METAL_FUNC constexpr bfloat operator-(bfloat a) { return bfloat(-static_cast<float>(a)); }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"
#pragma GCC diagnostic ignored "-Wliteral-suffix"
#pragma GCC diagnostic ignored "-Wuser-defined-literals"
#pragma GCC diagnostic ignored "-Wreserved-user-defined-literal"
METAL_FUNC constexpr half operator""h(long double x) { return static_cast<half>(x); }
METAL_FUNC constexpr half operator""H(long double x) { return static_cast<half>(x); }
METAL_FUNC constexpr bfloat operator""bf(long double x) { return bfloat(static_cast<float>(x)); }
METAL_FUNC constexpr bfloat operator""BF(long double x) { return bfloat(static_cast<float>(x)); }
#pragma GCC diagnostic pop

template <class T, class U>
METAL_FUNC T as_type(U value) {
  static_assert(sizeof(T) == sizeof(U), "as_type between types of different size");
  return __builtin_bit_cast(T, value);
}
