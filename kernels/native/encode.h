// Encoding. Included by kernels.cpp after quantize.h and transform.h.
//
// W rows are encoded together, one row per lane. All ordered sums and all bit packing are then vertical operations.

struct alignas(64) EncodeTile {
    Floats y[MAX_HEAD_DIM];         // by element, one row per lane
    Floats products[MAX_HEAD_DIM];  // y times its centroid, for unbiased norms
    Words words[MAX_HEAD_DIM / 4];  // packed rows, by word
};

// Prefetches half of the next tile's columns. One half is fetched while this tile is loaded, the other while it is
// quantized, because a core cannot have all of these lines outstanding at once.
HADAKV_INLINE void prefetch_half_columns(const std::uint8_t* p, int columns, std::size_t column_bytes) {
    for (std::size_t i = 0; i < columns * column_bytes / 2; i += 64) __builtin_prefetch(p + i, 0, 3);
}

// Does step 1, and step 2 up to distance W/2, while it transposes W rows into the tile.
template <Dtype DTYPE, bool ROTATED>
void load_rows(const Plan& plan, const std::uint8_t* x, Floats* y) {
    constexpr std::size_t BYTES = element_bytes(DTYPE);
    const std::size_t row_bytes = plan.head_dim * BYTES;
    const std::uint8_t* next_tile = x + W * row_bytes;
    for (int column = 0; column < plan.head_dim; column += W) {
        prefetch_half_columns(next_tile + column * W * BYTES / 2, W, W * BYTES);
        Words signs = {};
        if constexpr (ROTATED) signs = load<Words>(plan.sign_masks + column);
        Floats r[W];
        HADAKV_UNROLL
        for (int row = 0; row < W; ++row) {
            const Floats v = load_as_floats<DTYPE>(x + row * row_bytes + column * BYTES);
            r[row] = (Floats)((Words)v ^ signs);
        }
        transpose(r, ROTATED ? STAGES : 0);
        HADAKV_UNROLL
        for (int i = 0; i < W; ++i) y[column + i] = r[i];
    }
}

// Sums term(0) .. term(head_dim - 1) of each block in the codec's order: 32 lanes of E consecutive elements each, then
// pairwise.
template <int E, class Term>
HADAKV_INLINE void block_sums(Term term, int blocks, Floats* sums) {
    Floats lanes[32];
    for (int lane = 0; lane < 32; ++lane) {
        Floats sum = term(lane * E);
        HADAKV_UNROLL
        for (int i = 1; i < E; ++i) sum = sum + term(lane * E + i);
        lanes[lane] = sum;
    }
    const int block_lanes = 32 / blocks;
    for (int distance = 1; distance < block_lanes; distance *= 2)
        for (int lane = 0; lane < 32; lane += 2 * distance) lanes[lane] = lanes[lane] + lanes[lane + distance];
    for (int block = 0; block < blocks; ++block) sums[block] = lanes[block * block_lanes];
}

template <class Term>
HADAKV_INLINE void block_sums(const Plan& plan, Term term, Floats* sums) {
    switch (plan.head_dim) {
        case 64: return block_sums<2>(term, 1, sums);
        case 128: return block_sums<4>(term, 1, sums);
        case 256: return block_sums<8>(term, 1, sums);
        default: return block_sums<16>(term, 2, sums);
    }
}

// Does step 7: packs GROUP fields of FIELD bits into FIELD words, one row per lane.
template <int FIELD>
void pack_group(const Ints* index, Words* words) {
    Words packed[FIELD] = {};
    HADAKV_UNROLL
    for (int i = 0; i < GROUP; ++i) {
        const int word = i * FIELD / 32, shift = i * FIELD % 32;
        packed[word] |= (Words)index[i] << shift;
        if (shift + FIELD > 32) packed[word + 1] |= (Words)index[i] >> (32 - shift);
    }
    HADAKV_UNROLL
    for (int word = 0; word < FIELD; ++word) words[word] = packed[word];
}

void pack(int field_bits, const Ints* index, Words* words) {
    switch (field_bits) {
        case 2: return pack_group<2>(index, words);
        case 3: return pack_group<3>(index, words);
        case 4: return pack_group<4>(index, words);
        case 5: return pack_group<5>(index, words);
        case 6: return pack_group<6>(index, words);
        default: return pack_group<8>(index, words);
    }
}

// Transposes `count` words of W rows back into rows. `count` is even.
void store_rows(const Words* words, int count, std::uint8_t* packed, std::size_t row_bytes) {
    for (int first = 0; first < count; first += W) {
        Words r[W];
        HADAKV_UNROLL
        for (int i = 0; i < W; ++i) r[i] = words[first + i];
        transpose(r, 0);
        std::uint8_t* out = packed + first * sizeof(std::uint32_t);
        if (count - first >= W) {
            HADAKV_UNROLL
            for (int row = 0; row < W; ++row) store(out + row * row_bytes, r[row]);
        } else {
            for (int row = 0; row < W; ++row)
                for (int i = 0; i < count - first; i += 2)
                    store(out + row * row_bytes + i * sizeof(std::uint32_t), ((Pairs)r[row])[i / 2]);
        }
    }
}

struct BlockNorms {
    Floats sum[2];   // sum of squares
    Floats norm[2];
    Floats gain[2];  // factor of step 5
};

// Does step 4 and computes the factors of step 5.
HADAKV_INLINE BlockNorms measure(const Plan& plan, const Floats* y) {
    BlockNorms b;
    block_sums(plan, [y](int i) { return y[i] * y[i]; }, b.sum);
    for (int n = 0; n < plan.blocks; ++n) {
        // Division by 256 and multiplication by 1/256 round identically, because 256 is a power of two.
        b.norm[n] = square_root(plan.blocks == 2 ? b.sum[n] * splat(1.0f / 256.0f) : b.sum[n]);
        const Floats inverse = splat(1.0f) / b.norm[n];
        // A vanishing block gets gain 0, so that it stays zero.
        const Ints alive = (Ints)(b.norm[n] > splat(1e-10f));
        b.gain[n] = (Floats)((Ints)inverse & alive) * splat(plan.gain);
    }
    return b;
}

// Replaces the norms by unbiased ones. With these, the projection of the decoded vector on the original is exact.
HADAKV_INLINE void unbias(const Plan& plan, const Floats* products, BlockNorms& b) {
    Floats projections[2];
    block_sums(plan, [products](int i) { return products[i]; }, projections);
    for (int n = 0; n < plan.blocks; ++n) {
        const Floats zero = {};
        const Ints exact = (Ints)(b.norm[n] <= splat(1e-10f)) | (Ints)(projections[n] <= zero);
        const Floats unbiased = b.sum[n] / projections[n] * splat(plan.gain);
        b.norm[n] = (Floats)(((Ints)b.norm[n] & exact) | ((Ints)unbiased & ~exact));
    }
}

HADAKV_INLINE void store_norms(const BlockNorms& b, int blocks, std::uint8_t* norms) {
    if (blocks == 1) return store(norms, b.norm[0]);
    float interleaved[2 * W];
    for (int row = 0; row < W; ++row)
        for (int n = 0; n < 2; ++n) interleaved[2 * row + n] = b.norm[n][row];
    std::memcpy(norms, interleaved, sizeof interleaved);
}

using LoadRows = void (*)(const Plan&, const std::uint8_t*, Floats*);

LoadRows row_loader(Dtype dtype, bool rotated) {
    switch (dtype) {
        case Dtype::float32: return rotated ? load_rows<Dtype::float32, true> : load_rows<Dtype::float32, false>;
        case Dtype::float16: return rotated ? load_rows<Dtype::float16, true> : load_rows<Dtype::float16, false>;
        default: return rotated ? load_rows<Dtype::bfloat16, true> : load_rows<Dtype::bfloat16, false>;
    }
}

void encode_tile(const Plan& plan, Dtype dtype, const std::uint8_t* x, std::uint8_t* packed,
                 std::uint8_t* norms, EncodeTile& tile) {
    row_loader(dtype, plan.rotated)(plan, x, tile.y);
    if (plan.rotated) transform_from(tile.y, plan.head_dim, W, plan.inv_sqrt);
    BlockNorms block_norms = measure(plan, tile.y);
    const std::size_t column_bytes = W * element_bytes(dtype);
    const std::uint8_t* next_half = x + column_bytes * plan.head_dim * 3 / 2;
    for (int i = 0; i < plan.head_dim; i += GROUP) {
        Ints index[GROUP];
        prefetch_half_columns(next_half + i * column_bytes / 2, GROUP, column_bytes);
        quantize(plan, tile.y + i, block_norms.gain[i / 256 % plan.blocks], index);
        if (plan.unbiased) project(plan, tile.y + i, index, tile.products + i);
        pack(plan.field_bits, index, tile.words + i * plan.field_bits / 32);
    }
    if (plan.unbiased) unbias(plan, tile.products, block_norms);
    store_rows(tile.words, plan.head_dim * plan.field_bits / 32, packed, plan.row_bytes());
    store_norms(block_norms, plan.blocks, norms);
}

// Encodes the last tile, which has fewer than W rows, through buffers of a whole tile.
void encode_partial_tile(const Plan& plan, Dtype dtype, const std::uint8_t* x, std::size_t rows,
                         std::uint8_t* packed, std::uint8_t* norms, EncodeTile& tile) {
    alignas(64) std::uint8_t whole_x[W * MAX_HEAD_DIM * sizeof(float)];
    alignas(64) std::uint8_t whole_packed[W * MAX_HEAD_DIM], whole_norms[W * 2 * sizeof(float)];
    const std::size_t x_bytes = plan.head_dim * element_bytes(dtype);
    std::memcpy(whole_x, x, rows * x_bytes);
    std::memset(whole_x + rows * x_bytes, 0, (W - rows) * x_bytes);
    encode_tile(plan, dtype, whole_x, whole_packed, whole_norms, tile);
    std::memcpy(packed, whole_packed, rows * plan.row_bytes());
    std::memcpy(norms, whole_norms, rows * plan.norm_bytes());
}

void encode(const Plan& plan, Dtype dtype, const std::uint8_t* x, std::size_t rows, std::uint8_t* packed,
            std::uint8_t* norms) {
    EncodeTile tile;
    const std::size_t x_bytes = plan.head_dim * element_bytes(dtype);
    std::size_t row = 0;
    for (; row + W <= rows; row += W)
        encode_tile(plan, dtype, x + row * x_bytes, packed + row * plan.row_bytes(),
                    norms + row * plan.norm_bytes(), tile);
    if (row < rows)
        encode_partial_tile(plan, dtype, x + row * x_bytes, rows - row, packed + row * plan.row_bytes(),
                            norms + row * plan.norm_bytes(), tile);
}
