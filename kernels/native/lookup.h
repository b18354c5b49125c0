// Tables of floats, in which each lane reads at its own index. Included by kernels.cpp after vectors.h.

// permute reads one of at most PERMUTE_ENTRIES entries and ignores higher bits of the index.

#if defined(__AVX512F__)
constexpr int PERMUTE_ENTRIES = 32;

template <int ENTRIES>
HADAKV_INLINE Floats permute(const Floats* table, Ints index) {
    if constexpr (ENTRIES <= 4)
        return (Floats)_mm512_permutevar_ps((__m512)table[0], (__m512i)index);
    else if constexpr (ENTRIES <= 16)
        return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)table[0]);
    else
        return (Floats)_mm512_permutex2var_ps((__m512)table[0], (__m512i)index, (__m512)table[1]);
}

template <int BIT>
HADAKV_INLINE Floats select_by_bit(Ints index, Floats clear, Floats set) {
    const __mmask16 mask = _mm512_test_epi32_mask((__m512i)index, _mm512_set1_epi32(1 << BIT));
    return (Floats)_mm512_mask_blend_ps(mask, (__m512)clear, (__m512)set);
}
#elif defined(__AVX2__)
constexpr int PERMUTE_ENTRIES = 8;

template <int ENTRIES>
HADAKV_INLINE Floats permute(const Floats* table, Ints index) {
    // A lookup of four entries within each half is cheaper than one across both halves.
    if constexpr (ENTRIES <= 4)
        return (Floats)_mm256_permutevar_ps((__m256)table[0], (__m256i)index);
    else
        return (Floats)_mm256_permutevar8x32_ps((__m256)table[0], (__m256i)index);
}

template <int BIT>
HADAKV_INLINE Floats select_by_bit(Ints index, Floats clear, Floats set) {
    return (Floats)_mm256_blendv_ps((__m256)clear, (__m256)set, (__m256)(index << (31 - BIT)));
}
#elif defined(__aarch64__)
constexpr int PERMUTE_ENTRIES = 16;

template <int ENTRIES>
HADAKV_INLINE Floats permute(const Floats* table, Ints index) {
    constexpr int REGISTERS = ENTRIES > W ? ENTRIES / W : 1;
    uint8x16_t bytes[REGISTERS];
    HADAKV_UNROLL
    for (int i = 0; i < REGISTERS; ++i) bytes[i] = (uint8x16_t)table[i];
    // Byte b of entry i is byte 4 * i + b of the table.
    const uint8x16_t at = (uint8x16_t)((index & (REGISTERS * W - 1)) * 0x04040404 + 0x03020100);
    if constexpr (REGISTERS == 1)
        return (Floats)vqtbl1q_u8(bytes[0], at);
    else if constexpr (REGISTERS == 2)
        return (Floats)vqtbl2q_u8(uint8x16x2_t{{bytes[0], bytes[1]}}, at);
    else
        return (Floats)vqtbl4q_u8(uint8x16x4_t{{bytes[0], bytes[1], bytes[2], bytes[3]}}, at);
}

template <int BIT>
HADAKV_INLINE Floats select_by_bit(Ints index, Floats clear, Floats set) {
    return (Floats)vbslq_f32(vtstq_s32((int32x4_t)index, vdupq_n_s32(1 << BIT)), (float32x4_t)set,
                             (float32x4_t)clear);
}
#endif

HADAKV_INLINE Floats gather(const float* entries, Ints index) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (Floats)_mm256_i32gather_ps(entries, (__m256i)index, sizeof(float));
#else
    Floats found = {};
    HADAKV_UNROLL
    for (int lane = 0; lane < W; ++lane) found[lane] = entries[index[lane]];
    return found;
#endif
}

constexpr int log2_of(int n) { return n == 1 ? 0 : 1 + log2_of(n / 2); }

// Table of N entries. N is a power of two; higher bits of an index are ignored.
template <int N, bool IN_REGISTERS = (N <= TABLE_ENTRIES)>
struct Table;

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__aarch64__)
template <int N>
struct Table<N, true> {
    static constexpr int REGISTERS = N > W ? N / W : 1;
    Floats registers[REGISTERS];

    explicit HADAKV_INLINE_MEMBER Table(const float* entries) {
        HADAKV_UNROLL
        for (int i = 0; i < REGISTERS; ++i) registers[i] = load<Floats>(entries + i * W);
    }

    template <int ENTRIES>
    static HADAKV_INLINE_MEMBER Floats look_up(const Floats* table, Ints index) {
        if constexpr (ENTRIES <= PERMUTE_ENTRIES)
            return permute<ENTRIES>(table, index);
        else
            return select_by_bit<log2_of(ENTRIES) - 1>(index, look_up<ENTRIES / 2>(table, index),
                                                       look_up<ENTRIES / 2>(table + ENTRIES / 2 / W, index));
    }

    HADAKV_INLINE_MEMBER Floats operator[](Ints index) const {
        return look_up<N>(registers, index);
    }
};
#endif

template <int N>
struct Table<N, false> {
    const float* entries;

    explicit HADAKV_INLINE_MEMBER Table(const float* p) : entries(p) {}

    HADAKV_INLINE_MEMBER Floats operator[](Ints index) const {
        return gather(entries, index & (N - 1));
    }
};
