// Vectors of W lanes, and all operations that depend on the instruction set. Only kernels.cpp includes this file,
// inside an anonymous namespace, because each build has vectors of a different width.

#if defined(__clang__)
#define HADAKV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define HADAKV_UNROLL _Pragma("GCC unroll 64")
#endif
#define HADAKV_INLINE_MEMBER inline __attribute__((always_inline))
#define HADAKV_INLINE static HADAKV_INLINE_MEMBER

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int STAGES = 4;             // log2(W)
constexpr int MAX_RADIX = 16;         // largest butterfly that fits the registers
constexpr int SEARCH_BITS = 6;        // maximum bits for which binary search is faster than the grid
constexpr int TABLE_ENTRIES = 256;    // maximum table size for which registers are faster than loads
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int STAGES = 3;
constexpr int MAX_RADIX = 8;
constexpr int SEARCH_BITS = 5;
constexpr int TABLE_ENTRIES = 64;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int STAGES = 2;
constexpr int MAX_RADIX = 16;
constexpr int SEARCH_BITS = 4;
constexpr int TABLE_ENTRIES = 16;
#else
constexpr int W = 4;
constexpr int STAGES = 2;
constexpr int MAX_RADIX = 8;
constexpr int SEARCH_BITS = 0;
constexpr int TABLE_ENTRIES = 0;
#endif

typedef float Floats __attribute__((vector_size(4 * W)));
typedef std::int32_t Ints __attribute__((vector_size(4 * W)));
typedef std::uint32_t Words __attribute__((vector_size(4 * W)));
typedef std::uint64_t Pairs __attribute__((vector_size(4 * W)));
typedef std::uint16_t Halves __attribute__((vector_size(2 * W)));

template <class T>
HADAKV_INLINE T load(const void* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
HADAKV_INLINE void store(void* p, T v) {
    std::memcpy(p, &v, sizeof v);
}

// Subtracts zero, which keeps every value including -0.0. Adding zero would turn -0.0 into 0.0.
HADAKV_INLINE Floats splat(float s) { return s - Floats{}; }
HADAKV_INLINE Words splat(std::uint32_t s) { return s - Words{}; }

#if defined(__AVX2__)
// Returns 1 in every lane, hidden from the compiler, which would otherwise remove the multiplication by it.
HADAKV_INLINE Floats opaque_one() {
    Floats one = splat(1.0f);
    asm("" : "+v"(one));
    return one;
}
#endif

// Shuffles. At stages 0 and 1, `even` and `odd` separate neighbouring lanes within each 128-bit quarter. At later
// stages they separate neighbouring quarters. Repeated over register pairs (i, i | 1 << stage), they transpose W x W.

template <int STAGE, class T>
HADAKV_INLINE T even(T a, T b) {
#if defined(__AVX512F__)
    if constexpr (STAGE < 2)
        return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
    else
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
#elif defined(__AVX2__)
    if constexpr (STAGE < 2)
        return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
    else
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
#else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}

template <int STAGE, class T>
HADAKV_INLINE T odd(T a, T b) {
#if defined(__AVX512F__)
    if constexpr (STAGE < 2)
        return __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
    else
        return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif defined(__AVX2__)
    if constexpr (STAGE < 2)
        return __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
    else
        return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
#else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Separates the even and the odd elements of two consecutive vectors, in order.
HADAKV_INLINE void part(Words& a, Words& b) {
#if defined(__AVX512F__)
    const Words e = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Words o = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
    const Words e = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    const Words o = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    const Words e = __builtin_shufflevector(a, b, 0, 2, 4, 6);
    const Words o = __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
    a = e;
    b = o;
}

// Separates the words of four consecutive vectors by their position modulo 4.
HADAKV_INLINE void part4(Words* w) {
    part(w[0], w[1]);
    part(w[2], w[3]);
    part(w[0], w[2]);
    part(w[1], w[3]);
}

// Conversions. All of them round to nearest even, and a NaN stays a NaN.

// Intrinsics, because GCC 12 splits __builtin_convertvector into two halves for both conversions.
HADAKV_INLINE Words widen(Halves h) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, Words);
#endif
}

// Narrows words below 2**16.
HADAKV_INLINE Halves narrow(Words w) {
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtepi32_epi16((__m512i)w);
#elif defined(__AVX2__)
    const __m256i v = (__m256i)w;
    return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
#else
    return __builtin_convertvector(w, Halves);
#endif
}

HADAKV_INLINE Floats floats_from_halves(Halves h) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16((float16x4_t)h);
#else
    // A multiplication moves the exponent, which also normalises denormals of float16.
    const Words bits = widen(h);
    const Words magnitude = (bits & 0x7fffu) << 13;
    const Words special = (Words)(magnitude >= splat(0x0f800000u)) & 0x7f800000u;
    return (Floats)(((Words)((Floats)magnitude * splat(0x1p112f)) | special) | (bits & 0x8000u) << 16);
#endif
}

#if !defined(__AVX2__) && !defined(__aarch64__)
HADAKV_INLINE std::uint16_t half_from_float(float value) {
    std::uint32_t u = load<std::uint32_t>(&value);
    const std::uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
    if (u >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
    if (u < 0x38800000u) {
        // The addition of 0.5 leaves a rounded float16 denormal in the low bits.
        const float shifted = load<float>(&u) + 0.5f;
        return static_cast<std::uint16_t>(sign | (load<std::uint32_t>(&shifted) - 0x3f000000u));
    }
    u += 0xfffu + (u >> 13 & 1u) - (112u << 23);
    return static_cast<std::uint16_t>(sign | u >> 13);
}
#endif

HADAKV_INLINE Halves halves_from_floats(Floats v) {
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    return (Halves)vcvt_f16_f32((float32x4_t)v);
#else
    Halves h = {};
    HADAKV_UNROLL
    for (int lane = 0; lane < W; ++lane) h[lane] = half_from_float(v[lane]);
    return h;
#endif
}

HADAKV_INLINE Halves bfloats_from_floats(Floats v) {
    const Words u = (Words)v;
    const Words rounded = u + 0x7fffu + (u >> 16 & 1u);
    const Words is_nan = (Words)(v != v);
    return narrow(((rounded & ~is_nan) | ((u | 0x400000u) & is_nan)) >> 16);
}

// Replaces an infinity by the largest float16 of its sign, whose bits are one less. A NaN stays.
HADAKV_INLINE Halves without_infinity(Halves h) {
    return h + (Halves)((h & 0x7fffu) == 0x7c00u);
}

template <Dtype DTYPE>
HADAKV_INLINE Floats load_as_floats(const std::uint8_t* p) {
    if constexpr (DTYPE == Dtype::float32)
        return load<Floats>(p);
    else if constexpr (DTYPE == Dtype::float16)
        return floats_from_halves(load<Halves>(p));
    else
        return (Floats)(widen(load<Halves>(p)) << 16);
}

template <Dtype DTYPE>
HADAKV_INLINE void store_floats_as(std::uint8_t* p, Floats v) {
    if constexpr (DTYPE == Dtype::float32)
        store(p, v);
    else if constexpr (DTYPE == Dtype::float16)
        store(p, halves_from_floats(v));
    else
        store(p, bfloats_from_floats(v));
}

// Stores decoded values. Those that do not fit float16 become its largest ones.
template <Dtype DTYPE>
HADAKV_INLINE void store_decoded_as(std::uint8_t* p, Floats v) {
    if constexpr (DTYPE == Dtype::float16)
        store(p, without_infinity(halves_from_floats(v)));
    else
        store_floats_as<DTYPE>(p, v);
}

// Returns index + (v > boundary) for each lane. A NaN is above no boundary.
HADAKV_INLINE Ints add_greater(Ints index, Floats v, Floats boundary) {
#if defined(__AVX512F__)
    const __mmask16 above = _mm512_cmp_ps_mask((__m512)v, (__m512)boundary, _CMP_GT_OQ);
    return (Ints)_mm512_mask_add_epi32((__m512i)index, above, (__m512i)index, _mm512_set1_epi32(1));
#else
    return index - (Ints)(v > boundary);
#endif
}

HADAKV_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
    return (Floats)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)v);
#elif defined(__aarch64__)
    return (Floats)vsqrtq_f32((float32x4_t)v);
#else
    return (Floats)_mm_sqrt_ps((__m128)v);
#endif
}
