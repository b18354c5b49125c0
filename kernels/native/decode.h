// Decoding. Included by kernels.cpp after lookup.h and transform.h.
//
// W * W consecutive elements are decoded together. Lane l of register k holds element l * W + k, because the bit stream
// yields them that way. Butterflies across registers come first. The transposition then does the butterflies between
// lanes and puts the elements in order.

constexpr int SQUARE = W * W;

// Reads W * W fields of FIELD bits as CHUNKS vectors. Each lane is a word with PER_WORD consecutive fields.
template <int FIELD>
struct Fields {
    static constexpr int PER_WORD_AT_MOST = FIELD == 2 ? 16 : FIELD <= 4 ? 8 : 4;
    static constexpr int PER_WORD = W < PER_WORD_AT_MOST ? W : PER_WORD_AT_MOST;
    static constexpr int CHUNKS = W / PER_WORD;
    static constexpr int BITS = PER_WORD * FIELD;
    Words words[CHUNKS];

    // Returns the first bit of a lane's word.
    static constexpr int bit(int chunk, int lane) { return (lane * W + chunk * PER_WORD) * FIELD; }

    // Returns the offset of the four bytes to read. The last words end where the square ends, because the buffer may
    // end there.
    static constexpr int byte(int chunk, int lane) {
        constexpr int LAST = SQUARE * FIELD / 8 - 4;
        return bit(chunk, lane) / 8 < LAST ? bit(chunk, lane) / 8 : LAST;
    }

    explicit HADAKV_INLINE_MEMBER Fields(const std::uint8_t* packed) {
        if constexpr (BITS == 32) {
            HADAKV_UNROLL
            for (int i = 0; i < CHUNKS; ++i) words[i] = load<Words>(packed + i * sizeof(Words));
            if constexpr (CHUNKS == 2) part(words[0], words[1]);
            if constexpr (CHUNKS == 4) part4(words);
        } else if constexpr (BITS == 16 && CHUNKS == 1) {
            words[0] = widen(load<Halves>(packed));
        } else {
            HADAKV_UNROLL
            for (int chunk = 0; chunk < CHUNKS; ++chunk) {
                Words word = {}, shift = {};
                HADAKV_UNROLL
                for (int lane = 0; lane < W; ++lane) {
                    word[lane] = load<std::uint32_t>(packed + byte(chunk, lane));
                    shift[lane] = bit(chunk, lane) - 8 * byte(chunk, lane);
                }
                words[chunk] = word >> shift;
            }
        }
    }

    // Returns field k of every lane. The bits above it belong to the next field.
    HADAKV_INLINE_MEMBER Ints operator[](int k) const {
        return (Ints)(words[k / PER_WORD] >> (k % PER_WORD * FIELD));
    }
};

// Multiplies the centroids of one square by the scale.
template <int BITS, int FIELD>
void dequantize(const Plan& plan, const std::uint8_t* packed, Floats scale, Floats* y) {
    const Table<1 << BITS> centroids(plan.centroids);
    const Fields<FIELD> fields(packed);
    HADAKV_UNROLL
    for (int k = 0; k < W; ++k) y[k] = centroids[fields[k]] * scale;
}

using Dequantize = void (*)(const Plan&, const std::uint8_t*, Floats, Floats*);

Dequantize dequantizer(int bits, int field_bits) {
    const bool dense = bits == field_bits;
    switch (bits) {
        case 2: return dense ? dequantize<2, 2> : dequantize<2, 8>;
        case 3: return dense ? dequantize<3, 3> : dequantize<3, 8>;
        case 4: return dense ? dequantize<4, 4> : dequantize<4, 8>;
        case 5: return dense ? dequantize<5, 5> : dequantize<5, 8>;
        case 6: return dense ? dequantize<6, 6> : dequantize<6, 8>;
        default: return dequantize<8, 8>;
    }
}

// Transposes the squares of `count` vectors, which puts their elements in order. ROTATED adds butterflies at distances
// 1 .. W/2, and `lane_stages` more stages that are merged into the transposition.
template <bool ROTATED>
void put_in_order(Floats* y, int count, int lane_stages) {
    for (int first = 0; first < count; first += W) {
        Floats r[W];
        HADAKV_UNROLL
        for (int k = 0; k < W; ++k) r[k] = y[first + k];
        if constexpr (ROTATED) butterflies<W>(r);
        transpose(r, !ROTATED ? 0 : SQUARE <= 64 ? STAGES : lane_stages);
        HADAKV_UNROLL
        for (int k = 0; k < W; ++k) y[first + k] = r[k];
    }
}

// Distance in bytes at which output lines are prefetched for writing, so that stores do not wait for them.
constexpr int WRITE_AHEAD = 2048;

HADAKV_INLINE void prefetch_for_writing(const std::uint8_t* p, std::size_t nbytes) {
    for (std::size_t i = 0; i < nbytes; i += 64) __builtin_prefetch(p + i, 1, 3);
}

// Does the last RADIX-point butterflies over y[0 .. RADIX * stride), multiplies by the factors, and rounds to the
// output type.
template <int RADIX, Dtype DTYPE>
void finish(const Floats* y, int stride, const float* factors, std::uint8_t* out) {
    constexpr std::size_t BYTES = W * element_bytes(DTYPE);
    for (int j = 0; j < stride; ++j) {
        Floats r[RADIX];
        HADAKV_UNROLL
        for (int k = 0; k < RADIX; ++k) r[k] = y[j + k * stride];
        butterflies<RADIX>(r);
        HADAKV_UNROLL
        for (int k = 0; k < RADIX; ++k) {
            const int at = j + k * stride;
            store_decoded_as<DTYPE>(out + at * BYTES, r[k] * load<Floats>(factors + at * W));
        }
    }
}

using Finish = void (*)(const Floats*, int, const float*, std::uint8_t*);

template <Dtype DTYPE>
Finish finisher(int radix) {
    switch (radix) {
        case 1: return finish<1, DTYPE>;
        case 2: return finish<2, DTYPE>;
        case 4: return finish<4, DTYPE>;
        case 8: return finish<8, DTYPE>;
        default: return finish<16, DTYPE>;
    }
}

Finish finisher(Dtype dtype, int radix) {
    switch (dtype) {
        case Dtype::float32: return finisher<Dtype::float32>(radix);
        case Dtype::float16: return finisher<Dtype::float16>(radix);
        default: return finisher<Dtype::bfloat16>(radix);
    }
}

// Decoder of strips. A strip is the number of rows that fills MAX_HEAD_DIM elements; long strips need fewer steps per
// row.
class Decoder {
public:
    Decoder(const Plan& plan, Dtype dtype, bool inverse)
        : strip_rows(MAX_HEAD_DIM / plan.head_dim),
          row_out_bytes(plan.head_dim * element_bytes(dtype)),
          plan_(plan),
          rotated_(inverse && plan.rotated),
          dequantize_(dequantizer(plan.bits, plan.field_bits)),
          squares_per_scale_(plan.head_dim > SQUARE * plan.blocks ? plan.head_dim / SQUARE / plan.blocks : 1),
          square_bytes_(SQUARE * plan.field_bits / 8),
          square_out_bytes_(SQUARE * element_bytes(dtype)) {
        while (lane_stages_ < STAGES && W << lane_stages_ < plan.head_dim) ++lane_stages_;
        const int remaining = rotated_ && plan.head_dim > SQUARE ? plan.head_dim / SQUARE : 1;
        radix_ = remaining < 16 ? remaining : 16;
        finish_ = finisher(dtype, radix_);
    }

    const int strip_rows;
    const std::size_t row_out_bytes;

    // Decodes at most strip_rows rows. The rows must fill whole squares.
    void decode(const std::uint8_t* packed, const std::uint8_t* norms, int rows, std::uint8_t* out) const {
        alignas(64) Floats y[MAX_HEAD_DIM / W];
        const int elements = rows * plan_.head_dim;
        Floats scale = {};
        for (int i = 0; i * SQUARE < elements; ++i) {
            if ((i & (squares_per_scale_ - 1)) == 0) norms = read_scale(norms, scale);
            prefetch_for_writing(out + WRITE_AHEAD + i * square_out_bytes_, square_out_bytes_);
            dequantize_(plan_, packed + i * square_bytes_, scale, y + i * W);
        }
        if (!rotated_) {
            put_in_order<false>(y, elements / W, 0);
            return finish_(y, elements / W, plan_.unit_factors, out);
        }
        put_in_order<true>(y, elements / W, lane_stages_);
        if (radix_ == 1) return finish_(y, elements / W, plan_.inverse_factors, out);
        for (int row = 0; row < rows; ++row) finish_row(y + row * plan_.head_dim / W, out + row * row_out_bytes);
    }

private:
    // Does the butterflies between squares of one row, and stores the row.
    void finish_row(Floats* y, std::uint8_t* out) const {
        const int count = plan_.head_dim / W;
        int stride = W;
        for (; stride * radix_ < count; stride *= 2) strided_butterflies<2, false>(y, count, stride, 1.0f);
        finish_(y, stride, plan_.inverse_factors, out);
    }

    // Reads the scale of the next squares. Its lanes may belong to several rows. Returns a pointer to the next norms.
    const std::uint8_t* read_scale(const std::uint8_t* norms, Floats& scale) const {
        if (plan_.blocks == 2) {
            scale = splat(load<float>(norms) / plan_.gain);
            return norms + sizeof(float);
        }
        const int norms_per_square = plan_.head_dim < SQUARE ? SQUARE / plan_.head_dim : 1;
        if (norms_per_square == 1)
            scale = splat(load<float>(norms) * plan_.inv_sqrt);
        else
            for (int lane = 0; lane < W; ++lane)
                scale[lane] = load<float>(norms + lane * norms_per_square / W * sizeof(float)) * plan_.inv_sqrt;
        return norms + norms_per_square * sizeof(float);
    }

    const Plan& plan_;
    bool rotated_;
    Dequantize dequantize_;
    int squares_per_scale_;
    int square_bytes_;
    int square_out_bytes_;
    int lane_stages_ = 0;  // butterfly stages within a square, done by the transposition
    int radix_;            // radix of the last butterflies, between squares
    Finish finish_;
};

// Decodes rows that do not fill whole squares, through buffers that do.
void decode_partial_square(const Plan& plan, const Decoder& decoder, const std::uint8_t* packed,
                           const std::uint8_t* norms, int rows, std::uint8_t* out) {
    alignas(64) std::uint8_t whole_packed[MAX_HEAD_DIM] = {}, whole_out[MAX_HEAD_DIM * sizeof(float)];
    std::uint8_t whole_norms[MAX_HEAD_DIM / 64 * sizeof(float)] = {};
    std::memcpy(whole_packed, packed, rows * plan.row_bytes());
    std::memcpy(whole_norms, norms, rows * plan.norm_bytes());
    decoder.decode(whole_packed, whole_norms, decoder.strip_rows, whole_out);
    std::memcpy(out, whole_out, rows * decoder.row_out_bytes);
}

void decode(const Plan& plan, Dtype dtype, bool inverse, const std::uint8_t* packed, const std::uint8_t* norms,
            std::size_t rows, std::uint8_t* out) {
    const Decoder decoder(plan, dtype, inverse);
    for (std::size_t row = 0; row < rows; row += decoder.strip_rows) {
        const std::size_t left = rows - row;
        const int count = left < static_cast<std::size_t>(decoder.strip_rows) ? left : decoder.strip_rows;
        const std::uint8_t* row_packed = packed + row * plan.row_bytes();
        const std::uint8_t* row_norms = norms + row * plan.norm_bytes();
        std::uint8_t* row_out = out + row * decoder.row_out_bytes;
        if (count * plan.head_dim % SQUARE == 0)
            decoder.decode(row_packed, row_norms, count, row_out);
        else
            decode_partial_square(plan, decoder, row_packed, row_norms, count, row_out);
    }
}
