// The codec on SIMD vectors. This file is compiled once per instruction set; the engine picks one build at run time.
// Do not use templates of the standard library here: the linker keeps one copy of them, and other builds would call it.
#include "kernels.h"

#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace hadakv {
namespace {

#include "vectors.h"
#include "lookup.h"
#include "quantize.h"
#include "transform.h"
#include "encode.h"
#include "decode.h"
#include "copy.h"

}  // namespace

#define HADAKV_JOIN_(a, b) a##b
#define HADAKV_JOIN(a, b) HADAKV_JOIN_(a, b)
#define HADAKV_TEXT_(a) #a
#define HADAKV_TEXT(a) HADAKV_TEXT_(a)

const Kernels& HADAKV_JOIN(kernels_, HADAKV_ISA)() {
    static constexpr Kernels kernels = {HADAKV_TEXT(HADAKV_ISA), encode, decode, convert, memory_loop};
    return kernels;
}

}  // namespace hadakv
