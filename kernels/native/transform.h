// Walsh-Hadamard butterflies on vectors. Included by kernels.cpp after vectors.h.
//
// Stages run from the smallest distance to the largest. The codec requires this order, because another one rounds
// differently.

// Returns a - b. The fused form a * 1 - b rounds once, with the same result, and leaves the adders to the sums.
// Processors with separate units for addition and multiplication then do twice as many butterflies.
HADAKV_INLINE Floats difference(Floats a, Floats b) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmsub_ps((__m512)a, (__m512)opaque_one(), (__m512)b);
#elif defined(__AVX2__)
    return (Floats)_mm256_fmsub_ps((__m256)a, (__m256)opaque_one(), (__m256)b);
#else
    return a - b;
#endif
}

// Does stages 1, 2, .. R/2 across R registers.
template <int R>
HADAKV_INLINE void butterflies(Floats* r) {
    HADAKV_UNROLL
    for (int half = 1; half < R; half *= 2) {
        HADAKV_UNROLL
        for (int i = 0; i < R; ++i) {
            if (i & half) continue;
            const Floats a = r[i], b = r[i | half];
            r[i] = a + b;
            r[i | half] = difference(a, b);
        }
    }
}

template <int STAGE, bool BUTTERFLY, class T>
HADAKV_INLINE void transpose_stage(T* r) {
    HADAKV_UNROLL
    for (int i = 0; i < W; ++i) {
        if (i & (1 << STAGE)) continue;
        const T a = even<STAGE>(r[i], r[i | 1 << STAGE]);
        const T b = odd<STAGE>(r[i], r[i | 1 << STAGE]);
        if constexpr (BUTTERFLY) {
            r[i] = a + b;
            r[i | 1 << STAGE] = difference(a, b);
        } else {
            r[i] = a;
            r[i | 1 << STAGE] = b;
        }
    }
}

// Transposes W registers of W lanes. Each stage aligns lanes at distance 1, 2, 4 .., so a butterfly between them needs
// no further shuffle. The first `rotated_stages` stages include a butterfly.
template <int STAGE = 0, class T>
HADAKV_INLINE void transpose(T* r, int rotated_stages) {
    if constexpr (STAGE < STAGES) {
        if constexpr (std::is_same_v<T, Floats>) {
            if (STAGE < rotated_stages)
                transpose_stage<STAGE, true>(r);
            else
                transpose_stage<STAGE, false>(r);
        } else {
            transpose_stage<STAGE, false>(r);
        }
        transpose<STAGE + 1>(r, rotated_stages);
    }
}

// Does the butterflies at distances `stride`, 2 * stride, .. R/2 * stride over y[0 .. count). SCALED then multiplies by
// `factor`.
template <int R, bool SCALED>
void strided_butterflies(Floats* y, int count, int stride, float factor) {
    for (int group = 0; group < count; group += stride * R) {
        for (int j = group; j < group + stride; ++j) {
            Floats r[R];
            HADAKV_UNROLL
            for (int k = 0; k < R; ++k) r[k] = y[j + k * stride];
            butterflies<R>(r);
            HADAKV_UNROLL
            for (int k = 0; k < R; ++k) y[j + k * stride] = SCALED ? r[k] * splat(factor) : r[k];
        }
    }
}

// Does all butterflies from distance `stride` up over y[0 .. count), then multiplies by `factor`.
HADAKV_INLINE void transform_from(Floats* y, int count, int stride, float factor) {
    for (; stride * MAX_RADIX < count; stride *= MAX_RADIX)
        strided_butterflies<MAX_RADIX, false>(y, count, stride, factor);
    switch (count / stride) {
        case 2: return strided_butterflies<2, true>(y, count, stride, factor);
        case 4: return strided_butterflies<4, true>(y, count, stride, factor);
        case 8: return strided_butterflies<8, true>(y, count, stride, factor);
        default: return strided_butterflies<MAX_RADIX, true>(y, count, stride, factor);
    }
}
