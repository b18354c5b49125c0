// The part of Metal's standard library that compute kernels use, for g++ 12, clang++ 15, or newer.
//
// Kernel text is compiled without optimisation. Calls are identified by the return addresses on the stacks of lanes, and
// an optimiser may duplicate or merge calls. Functions that are always_inline are inlined even so, with one copy for
// each call in the text.
#pragma once

#pragma GCC diagnostic ignored "-Wattributes"

typedef __INT8_TYPE__ int8_t;
typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

#define METAL_FUNC inline __attribute__((__always_inline__))

#include "scalars.h"
#include "traits.h"
#include "vectors.h"
#include "math.h"
#include "integer.h"
#include "simdgroup.h"
#include "atomics.h"
