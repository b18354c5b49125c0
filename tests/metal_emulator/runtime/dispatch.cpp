// Launch of a kernel: copies buffers to guarded memory, schedules all threadgroups of the grid, and copies outputs back.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "accesses.h"
#include "faults.h"
#include "memory.h"
#include "scheduler.h"

using namespace lanes;

namespace {

struct Buffer {
  const char* name;
  void* bytes;
  uint64_t size;
  int writable;
  int initialised;  // an output that starts with the given bytes, not with poison
};

struct Launch {
  Kernel kernel;
  const Buffer* buffers;
  unsigned buffer_count;
  unsigned grid[3], threadgroup[3];
  Options options;
};

Scheduler scheduler;
ThreadgroupMemory threadgroup_memory;
std::vector<Region> regions;
std::vector<void*> addresses;
Counts counts;

const Region* region_of(const void* address) {
  for (const Region& region : regions)
    if (region.covers(address)) return &region;
  return threadgroup_memory.find(address);
}

bool describe(const void* address, char* text, size_t room) {
  if (const Region* region = region_of(address)) return region->describe(address, text, room), true;
  // A 32-bit index that underflows points 2^32 elements too far.
  for (size_t element = 1; element <= 16; element *= 2) {
    const char* meant = static_cast<const char*>(address) - (element << 32);
    if (const Region* region = region_of(meant)) return region->describe(meant, text, room), true;
  }
  return false;
}

// Flushes denormals to zero during its lifetime, as Metal may do.
class FloatingPointMode {
 public:
  explicit FloatingPointMode(bool flush) {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    if (flush) _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040u);
#else
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (flush) asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t{1} << 24)));
#endif
  }
  ~FloatingPointMode() {
#if defined(__x86_64__)
    _mm_setcsr(static_cast<unsigned>(saved_));
#else
    asm volatile("msr fpcr, %0" ::"r"(saved_));
#endif
  }

 private:
  uint64_t saved_;
};

void place_buffers(const Launch& launch) {
  unsigned char poison = static_cast<unsigned char>(launch.options.poison);
  regions.clear();
  addresses.clear();
  accesses().begin();
  for (unsigned i = 0; i < launch.buffer_count; i++) {
    const Buffer& buffer = launch.buffers[i];
    Region region(buffer.name, buffer.size, 1, launch.options.guard_at_start != 0, poison);
    if (!buffer.writable || buffer.initialised) memcpy(region.bytes(), buffer.bytes, buffer.size);
    if (buffer.writable)
      accesses().watch(buffer.name, region.bytes(), buffer.size, Space::device, buffer.initialised != 0);
    else
      region.make_read_only();
    addresses.push_back(region.bytes());
    regions.push_back(std::move(region));
  }
  threadgroup_memory.begin(launch.options.guard_at_start != 0, poison);
}

// Fills in the builtins of thread `index` in the threadgroup at `at` of size `size`.
void describe_thread(Builtins& b, unsigned index, Triple at, Triple size, const Launch& launch) {
  const unsigned *grid = launch.grid, *group = launch.threadgroup;
  unsigned whole = group[0] * group[1] * group[2], threads = size.x * size.y * size.z;
  Triple inside = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
  b.thread_position_in_threadgroup = inside;
  b.threadgroup_position_in_grid = at;
  b.thread_position_in_grid = {at.x * group[0] + inside.x, at.y * group[1] + inside.y, at.z * group[2] + inside.z};
  b.threads_per_threadgroup = size;
  b.dispatch_threads_per_threadgroup = {group[0], group[1], group[2]};
  b.threads_per_grid = b.grid_size = {grid[0], grid[1], grid[2]};
  b.grid_origin = {0, 0, 0};
  b.threadgroups_per_grid = {(grid[0] + group[0] - 1) / group[0], (grid[1] + group[1] - 1) / group[1],
                             (grid[2] + group[2] - 1) / group[2]};
  b.thread_index_in_threadgroup = index;
  b.thread_index_in_simdgroup = index % kWidth;
  b.simdgroup_index_in_threadgroup = index / kWidth;
  b.simdgroups_per_threadgroup = (threads + kWidth - 1) / kWidth;
  b.dispatch_simdgroups_per_threadgroup = (whole + kWidth - 1) / kWidth;
  b.threads_per_simdgroup = b.thread_execution_width = kWidth;
  b.thread_index_in_quadgroup = index % 4;
  b.quadgroup_index_in_threadgroup = index / 4;
  b.quadgroups_per_threadgroup = (threads + 3) / 4;
  b.dispatch_quadgroups_per_threadgroup = (whole + 3) / 4;
}

bool run_threadgroup(uint32_t serial, Triple at, const Launch& launch) {
  const unsigned *grid = launch.grid, *group = launch.threadgroup;
  // The grid counts threads, so threadgroups at its edge may be smaller.
  Triple size = {std::min(group[0], grid[0] - at.x * group[0]), std::min(group[1], grid[1] - at.y * group[1]),
                 std::min(group[2], grid[2] - at.z * group[2])};
  unsigned threads = size.x * size.y * size.z;
  for (unsigned i = 0; i < threads; i++) describe_thread(scheduler.thread(i).builtins, i, at, size, launch);
  threadgroup_memory.poison_all();
  accesses().begin_threadgroup(serial);
  return scheduler.run(launch.kernel, addresses.data(), threads, launch.options, counts);
}

bool run_grid(const Launch& launch) {
  uint64_t groups[3], total = 1;
  for (int i = 0; i < 3; i++)
    total *= groups[i] = (launch.grid[i] + uint64_t{launch.threadgroup[i]} - 1) / launch.threadgroup[i];
  for (uint64_t i = 0; i < total; i++) {
    uint64_t k = launch.options.lane_order == LaneOrder::reverse ? total - 1 - i : i;
    Triple at = {static_cast<unsigned>(k % groups[0]), static_cast<unsigned>(k / groups[0] % groups[1]),
                 static_cast<unsigned>(k / (groups[0] * groups[1]))};
    if (!run_threadgroup(static_cast<uint32_t>(i), at, launch)) return false;
  }
  return true;
}

// Faults return here. No frame between this one and the kernel owns resources.
bool run_guarded(const Launch& launch) {
  if (sigsetjmp(after_fault, 1)) return false;
  return run_grid(launch);
}

bool check_slack() {
  char text[256];
  for (const Region& region : regions)
    if (!region.slack_intact(text, sizeof text)) return fail("the kernel writes %s", text), false;
  if (threadgroup_memory.overrun(text, sizeof text)) return fail("the kernel writes %s", text), false;
  return true;
}

}  // namespace

extern "C" {

LANES_EXPORT void* lanes_threadgroup_variable(const void* key, const char* name, Size bytes, Size alignment) {
  void* address = threadgroup_memory.variable(key, name, bytes, alignment);
  if (failure()[0]) abandon_lane();
  return address;
}

// Returns 0 on success. On failure, lanes_failure() has the reason. Only one launch may run at a time.
LANES_EXPORT int lanes_launch(const Launch* launch) {
  clear_failure();
  counts = Counts();
  place_buffers(*launch);
  bool good;
  {
    FaultGuard guard(describe, launch->options.cpu_seconds);
    FloatingPointMode mode(launch->options.flush_denormals != 0);
    good = run_guarded(*launch);
  }
  good = good && check_slack() && (!launch->options.watch || accesses().all_written());
  for (unsigned i = 0; good && i < launch->buffer_count; i++)
    if (launch->buffers[i].writable) memcpy(launch->buffers[i].bytes, regions[i].bytes(), regions[i].size());
  regions.clear();
  threadgroup_memory.end();
  return good ? 0 : 1;
}

LANES_EXPORT const char* lanes_failure() { return failure(); }

LANES_EXPORT void lanes_counts(uint64_t* into) { memcpy(into, &counts, sizeof counts); }
}
