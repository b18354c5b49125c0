// Functions of one build of kernels.cpp. Pointers may have any alignment, because rows are views into message bodies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace hadakv {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

constexpr std::size_t element_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

struct Kernels {
    const char* isa;
    // x [rows, head_dim] of dtype -> packed [rows, row_bytes], norms float32 [rows, blocks].
    void (*encode)(const Plan&, Dtype, const std::uint8_t* x, std::size_t rows, std::uint8_t* packed,
                   std::uint8_t* norms);
    // packed, norms -> out [rows, head_dim] of dtype. Without `inverse`, out stays in the rotated domain.
    void (*decode)(const Plan&, Dtype, bool inverse, const std::uint8_t* packed, const std::uint8_t* norms,
                   std::size_t rows, std::uint8_t* out);
    // Converts `count` elements between types, rounding to nearest even. `count` is a multiple of 64.
    void (*convert)(Dtype from, Dtype to, const std::uint8_t* x, std::size_t count, std::uint8_t* out);
    // Reads and writes the given numbers of bytes without computing. Benchmarks use it as the upper bound.
    void (*memory_loop)(const std::uint8_t* x, std::size_t read_bytes, std::uint8_t* out, std::size_t write_bytes);
};

// One function per build of kernels.cpp. Only the builds of this target are defined.
const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
const Kernels& kernels_neon();
const Kernels& kernels_baseline();

}  // namespace hadakv
