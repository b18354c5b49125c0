// Interface between a compiled kernel and the runtime.
//
// No C or C++ library header may be included from here: a global ::abs(int) would make `using namespace metal; abs(x)`
// ambiguous in kernel text.
#pragma once

namespace lanes {

typedef __SIZE_TYPE__ Size;

struct Triple {
  unsigned x, y, z;
};

// One per thread; the members are named as the attributes of Metal's language.
struct Builtins {
  Triple thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid, threads_per_threadgroup,
      dispatch_threads_per_threadgroup, threads_per_grid, grid_size, grid_origin, threadgroups_per_grid;
  unsigned thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
      simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup, threads_per_simdgroup, thread_execution_width,
      thread_index_in_quadgroup, quadgroup_index_in_threadgroup, quadgroups_per_threadgroup,
      dispatch_quadgroups_per_threadgroup;
};

enum class Operation : unsigned char {
  shuffle,
  shuffle_xor,
  shuffle_up,
  shuffle_down,
  rotate_up,
  rotate_down,
  fill_up,
  fill_down,
  broadcast_first,
  sum,
  product,
  minimum,
  maximum,
  bit_and,
  bit_or,
  bit_xor,
  inclusive_sum,
  exclusive_sum,
  inclusive_product,
  exclusive_product,
  ballot,
  active,
  barrier,
};

enum class Scalar : unsigned char { none, f32, f16, bf16, i8, u8, i16, u16, i32, u32, i64, u64 };

// One lane's call of a simdgroup function, on that lane's stack while it waits.
struct Call {
  Operation operation;
  Scalar scalar;         // of a reduction: what one component is
  unsigned short bytes;  // of the value
  unsigned parameter;    // lane, mask or distance
  const void* value;
  const void* fill;
  void* result;
  const char* name;
  const char* file;
  unsigned line;
};

typedef void (*Kernel)(void** buffers);

#define LANES_EXPORT __attribute__((visibility("default")))
extern "C" {
// Blocks the lane until every lane of its simdgroup that is going to make the same call has.
LANES_EXPORT void lanes_collective(const Call* call);
LANES_EXPORT void lanes_threadgroup_barrier(unsigned flags, const char* file, unsigned line);
LANES_EXPORT const Builtins* lanes_builtins();
// An atomic operation is about to write there.
LANES_EXPORT void lanes_atomic_write(const void* address, Size size);
// The threadgroup's copy of a variable: the same address for every thread of the threadgroup.
LANES_EXPORT void* lanes_threadgroup_variable(const void* key, const char* name, Size bytes, Size alignment);
}

}  // namespace lanes
