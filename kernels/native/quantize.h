// Quantization of values to indices, GROUP elements of W rows at a time. Included by kernels.cpp after lookup.h.

constexpr int GROUP = 32;  // number of elements that fills whole 32-bit words at every field width

// Number of searches that run interleaved. Each level of a search depends on the previous one, so a single search would
// leave the processor idle.
constexpr int SEARCHED_TOGETHER = 4;

// Step 6 for at most 6 bits: a balanced tree of boundaries, searched level by level.
template <int LEVEL, int BITS>
struct Tree {
    Table<1 << LEVEL> nodes;
    Tree<LEVEL + 1, BITS> deeper;

    explicit HADAKV_INLINE_MEMBER Tree(const Plan& plan) : nodes(plan.nodes[LEVEL]), deeper(plan) {}

    HADAKV_INLINE_MEMBER void descend(const Floats* v, Ints* index) const {
        HADAKV_UNROLL
        for (int i = 0; i < SEARCHED_TOGETHER; ++i)
            index[i] = add_greater(index[i] + index[i], v[i], nodes[index[i]]);
        deeper.descend(v, index);
    }
};

template <int BITS>
struct Tree<BITS, BITS> {
    explicit HADAKV_INLINE_MEMBER Tree(const Plan&) {}
    HADAKV_INLINE_MEMBER void descend(const Floats*, Ints*) const {}
};

// Does steps 5 and 6 for GROUP elements by binary search.
template <int BITS>
void search(const Plan& plan, const Floats* y, Floats gain, Ints* index) {
    const Floats root = splat(plan.nodes[0][0]);
    const Tree<1, BITS> tree(plan);
    for (int first = 0; first < GROUP; first += SEARCHED_TOGETHER) {
        Floats v[SEARCHED_TOGETHER];
        Ints found[SEARCHED_TOGETHER];
        HADAKV_UNROLL
        for (int i = 0; i < SEARCHED_TOGETHER; ++i) v[i] = y[first + i] * gain;
        HADAKV_UNROLL
        for (int i = 0; i < SEARCHED_TOGETHER; ++i) found[i] = add_greater(Ints{}, v[i], root);
        tree.descend(v, found);
        HADAKV_UNROLL
        for (int i = 0; i < SEARCHED_TOGETHER; ++i) index[first + i] = found[i];
    }
}

HADAKV_INLINE Ints cells_of(const Plan& plan, Floats v) {
    const Floats t = v * splat(plan.cell_scale) + splat(plan.cell_offset);
    const Floats zero = {}, last = splat(static_cast<float>(plan.cell_count - 1));
    // A NaN compares false, so it goes to cell 0 and is not above that cell's boundary.
    const Floats from_zero = t > zero ? t : zero;
    return __builtin_convertvector(from_zero < last ? from_zero : last, Ints);
}

template <int LANE>
HADAKV_INLINE Pairs cell_pairs(const Plan& plan, const std::int32_t* cells) {
    Pairs pairs = {};
    HADAKV_UNROLL
    for (int i = 0; i < W / 2; ++i)
        pairs[i] = load<std::uint64_t>(plan.cells + cells[(i & ~1) * 2 + (i & 1) + LANE]);
    return pairs;
}

// Does steps 5 and 6 for any number of bits. The grid cell of a value gives its index after one comparison.
void search_grid(const Plan& plan, const Floats* y, Floats gain, Ints* index) {
    for (int i = 0; i < GROUP; ++i) index[i] = cells_of(plan, y[i] * gain);
    for (int i = 0; i < GROUP; ++i) {
        const std::int32_t* cells = reinterpret_cast<const std::int32_t*>(index + i);
        const Ints low = (Ints)cell_pairs<0>(plan, cells), high = (Ints)cell_pairs<2>(plan, cells);
        index[i] = add_greater(odd<0>(low, high), y[i] * gain, (Floats)even<0>(low, high));
    }
}

void quantize(const Plan& plan, const Floats* y, Floats gain, Ints* index) {
    switch (plan.bits <= SEARCH_BITS ? plan.bits : 0) {
        case 2: return search<2>(plan, y, gain, index);
        case 3: return search<3>(plan, y, gain, index);
        case 4: return search<4>(plan, y, gain, index);
        case 5: return search<5>(plan, y, gain, index);
        case 6: return search<6>(plan, y, gain, index);
        default: return search_grid(plan, y, gain, index);
    }
}

template <int BITS>
void multiply_by_centroids(const Plan& plan, const Floats* y, const Ints* index, Floats* products) {
    const Table<1 << BITS> centroids(plan.centroids);
    for (int i = 0; i < GROUP; ++i) products[i] = y[i] * centroids[index[i]];
}

void project(const Plan& plan, const Floats* y, const Ints* index, Floats* products) {
    switch (plan.bits) {
        case 2: return multiply_by_centroids<2>(plan, y, index, products);
        case 3: return multiply_by_centroids<3>(plan, y, index, products);
        case 4: return multiply_by_centroids<4>(plan, y, index, products);
        case 5: return multiply_by_centroids<5>(plan, y, index, products);
        case 6: return multiply_by_centroids<6>(plan, y, index, products);
        default: return multiply_by_centroids<8>(plan, y, index, products);
    }
}
