// Codec at a head_dim, prepared for the kernels: sizes, constants, and tables in the shapes in which they are read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hadakv {

constexpr int MAX_HEAD_DIM = 512;
constexpr int MAX_LEVELS = 256;
constexpr int SEARCH_LEVELS = 6;  // maximum bits for which the binary search has nodes
constexpr int MAX_CELLS = 2048;

// Grid cell: the boundary inside it, or infinity, and the number of boundaries below it.
struct Cell {
    float boundary;
    std::int32_t base;
};

struct Plan {
    int head_dim;
    int blocks;      // 2 at head_dim 512, else 1
    int bits;        // bits of an index
    int field_bits;  // bits per index in a packed row: `bits` in the dense layout, 8 in the byte layout
    bool rotated;
    bool unbiased;
    float inv_sqrt;
    float gain;

    // A table that is shorter than its array repeats, so that it fills a register at any length.
    alignas(64) std::uint32_t sign_masks[MAX_HEAD_DIM];   // the float's sign bit, set where the sign is minus
    alignas(64) float inverse_factors[MAX_HEAD_DIM];      // sign * inv_sqrt
    alignas(64) float unit_factors[MAX_HEAD_DIM];         // 1
    alignas(64) float centroids[MAX_LEVELS];
    alignas(64) float nodes[SEARCH_LEVELS][1 << (SEARCH_LEVELS - 1)];  // boundaries by level of a balanced tree
    alignas(64) Cell cells[MAX_CELLS];
    float cell_scale;
    float cell_offset;
    int cell_count;

    std::size_t row_bytes() const { return static_cast<std::size_t>(head_dim) * field_bits / 8; }
    std::size_t norm_bytes() const { return sizeof(float) * blocks; }
};

struct PlanOptions {
    int head_dim;
    int bits;
    int field_bits;
    bool rotated;
    bool unbiased;
    float inv_sqrt;
    float gain;
    const float* centroids;            // [2**bits], ascending
    const float* boundaries;           // [2**bits - 1], ascending
    const std::uint8_t* sign_bits;     // [head_dim / 8], little-endian in each byte, 1 means minus
};

// Fills a plan. Throws std::invalid_argument if the sizes are not supported, or if the boundaries do not fit the grid.
void build_plan(Plan& plan, const PlanOptions& options);

}  // namespace hadakv
