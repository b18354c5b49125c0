// For MLX's header of this name, whose members are overloaded by address space.
#pragma once
template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r = 0, T i = 0) : real(r), imag(i) {}
};
typedef complex_t<float> complex64_t;
