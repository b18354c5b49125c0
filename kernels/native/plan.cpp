#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace hadakv {
namespace {

void check_sizes(const PlanOptions& o) {
    const bool head_dim = o.head_dim == 64 || o.head_dim == 128 || o.head_dim == 256 || o.head_dim == 512;
    const bool bits = (o.bits >= 2 && o.bits <= 6) || o.bits == 8;
    if (!head_dim || !bits || (o.field_bits != o.bits && o.field_bits != 8))
        throw std::invalid_argument("unsupported head_dim, bits or field_bits");
}

void fill_signs(Plan& plan, const std::uint8_t* sign_bits) {
    for (int i = 0; i < MAX_HEAD_DIM; ++i) {
        const int j = i % plan.head_dim;
        const bool minus = (sign_bits[j >> 3] >> (j & 7)) & 1;
        plan.sign_masks[i] = minus ? 0x80000000u : 0u;
        plan.inverse_factors[i] = minus ? -plan.inv_sqrt : plan.inv_sqrt;
        plan.unit_factors[i] = 1.0f;
    }
}

// Level l of the search compares with every 2**(bits-l)-th boundary. Level 0 compares with the middle boundary.
void fill_nodes(Plan& plan, const float* boundaries) {
    for (int level = 0; level < std::min(plan.bits, SEARCH_LEVELS); ++level) {
        const int step = 1 << (plan.bits - 1 - level);
        for (int i = 0; i < 1 << (SEARCH_LEVELS - 1); ++i) {
            const int node = i % (1 << level);
            plan.nodes[level][i] = boundaries[(2 * node + 1) * step - 1];
        }
    }
}

// Uses the same float operations as the kernel, so that both put a boundary into the same cell.
int cell_of(const Plan& plan, float v) {
    float t = v * plan.cell_scale + plan.cell_offset;
    t = t > 0.0f ? t : 0.0f;
    const float last = static_cast<float>(plan.cell_count - 1);
    return static_cast<int>(t < last ? t : last);
}

// cell_of is monotonic, so `base[c] + (v > boundary[c])` is exact if no cell holds two boundaries.
void fill_cells(Plan& plan, const float* boundaries) {
    const int count = (1 << plan.bits) - 1;
    float gap = std::numeric_limits<float>::infinity();
    for (int i = 1; i < count; ++i) gap = std::min(gap, boundaries[i] - boundaries[i - 1]);
    // Cells are slightly narrower than the narrowest gap, so that rounding cannot put two boundaries into one.
    plan.cell_scale = 1.01f / gap;
    plan.cell_offset = 1.5f - boundaries[0] * plan.cell_scale;
    const float extent = (boundaries[count - 1] - boundaries[0]) * plan.cell_scale;
    if (!(gap > 0.0f) || !(extent < MAX_CELLS - 4))
        throw std::invalid_argument("boundaries are not ascending, or too close together for the grid");
    plan.cell_count = static_cast<int>(extent) + 4;
    for (int c = 0; c < plan.cell_count; ++c) plan.cells[c] = {std::numeric_limits<float>::infinity(), 0};
    for (int i = 0; i < count; ++i) {
        const int c = cell_of(plan, boundaries[i]);
        if (!std::isinf(plan.cells[c].boundary)) throw std::invalid_argument("two boundaries share a grid cell");
        plan.cells[c].boundary = boundaries[i];
        for (int above = c + 1; above < plan.cell_count; ++above) ++plan.cells[above].base;
    }
}

}  // namespace

void build_plan(Plan& plan, const PlanOptions& options) {
    check_sizes(options);
    plan.head_dim = options.head_dim;
    plan.blocks = options.head_dim == 512 ? 2 : 1;
    plan.bits = options.bits;
    plan.field_bits = options.field_bits;
    plan.rotated = options.rotated;
    plan.unbiased = options.unbiased;
    plan.inv_sqrt = options.inv_sqrt;
    plan.gain = options.gain;
    fill_signs(plan, options.sign_bits);
    for (int i = 0; i < MAX_LEVELS; ++i) plan.centroids[i] = options.centroids[i % (1 << options.bits)];
    fill_nodes(plan, options.boundaries);
    fill_cells(plan, options.boundaries);
}

}  // namespace hadakv
