// Kernels are compiled with -fsanitize=thread. Its calls come here, not to the sanitizer's own library. Two accesses of
// one byte by different threads, one of them a write, need a barrier between them that orders that memory. Threads of
// different threadgroups have no barrier.
#include "accesses.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "scheduler.h"

namespace lanes {

namespace {
constexpr size_t kLargestWatched = size_t{1} << 20;
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kAtomic = UINT32_MAX;
}  // namespace

Accesses& accesses() {
  static Accesses all;
  return all;
}

void Accesses::begin() {
  for (Memory& memory : memories_) munmap(memory.shadow, memory.shadow_size);
  memories_.clear();
}

void Accesses::watch(std::string name, const char* bytes, size_t size, Space space, bool initialised) {
  if (size == 0 || size > kLargestWatched) return;
  size_t shadow_size = size * sizeof(Byte);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* shadow = mmap(nullptr, shadow_size, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (shadow == MAP_FAILED) abort();
  memories_.push_back({std::move(name), bytes, size, space, initialised, static_cast<Byte*>(shadow), shadow_size});
}

void Accesses::begin_threadgroup(uint32_t serial) {
  first_thread_ = 1 + serial * kMaxThreads;
  memset(group_epoch_, 0, sizeof group_epoch_);
  memset(simdgroup_epoch_, 0, sizeof simdgroup_epoch_);
  for (Memory& memory : memories_)
    if (memory.space == Space::threadgroup) memset(static_cast<void*>(memory.shadow), 0, memory.shadow_size);
}

void Accesses::pass_threadgroup_barrier(unsigned flags) {
  group_epoch_[static_cast<int>(Space::device)] += (flags & kOrdersDevice) != 0;
  group_epoch_[static_cast<int>(Space::threadgroup)] += (flags & kOrdersThreadgroup) != 0;
}

void Accesses::pass_simdgroup_barrier(unsigned simdgroup, unsigned flags) {
  simdgroup_epoch_[simdgroup][static_cast<int>(Space::device)] += (flags & kOrdersDevice) != 0;
  simdgroup_epoch_[simdgroup][static_cast<int>(Space::threadgroup)] += (flags & kOrdersThreadgroup) != 0;
}

void Accesses::read(const void* address, size_t size) {
  const Memory* memory = find(address);
  if (!memory) return;
  Access now = by_current(memory->space);
  size_t first = static_cast<size_t>(static_cast<const char*>(address) - memory->bytes);
  for (size_t i = first; i < std::min(first + size, memory->size); i++) {
    Byte& byte = memory->shadow[i];
    if (!byte.write.thread && !memory->initialised) {
      fail("thread %u of its threadgroup reads byte %zu of %s, which nothing has written",
           (now.thread - 1) % kMaxThreads, i, memory->name.c_str());
      abandon_lane();
    }
    if (unordered(byte.write, now)) conflict(*memory, i, {byte.write, "writes"}, {now, "reads"});
    add_reader(byte.read, now);
  }
}

void Accesses::write(const void* address, size_t size) {
  const Memory* memory = find(address);
  if (!memory) return;
  Access now = by_current(memory->space);
  size_t first = static_cast<size_t>(static_cast<const char*>(address) - memory->bytes);
  for (size_t i = first; i < std::min(first + size, memory->size); i++) {
    Byte& byte = memory->shadow[i];
    if (unordered(byte.write, now)) conflict(*memory, i, {byte.write, "writes"}, {now, "writes"});
    if (unordered(byte.read, now)) conflict(*memory, i, {byte.read, "reads"}, {now, "writes"});
    byte.write = now;
    byte.read = Access();
  }
}

void Accesses::write_atomically(const void* address, size_t size) {
  const Memory* memory = find(address);
  if (!memory) return;
  Access now = by_current(memory->space);
  size_t first = static_cast<size_t>(static_cast<const char*>(address) - memory->bytes);
  for (size_t i = first; i < std::min(first + size, memory->size); i++) {
    Byte& byte = memory->shadow[i];
    if (unordered(byte.write, now)) conflict(*memory, i, {byte.write, "writes"}, {now, "atomically writes"});
    byte.write.thread = kAtomic;
  }
}

bool Accesses::all_written() const {
  for (const Memory& memory : memories_) {
    if (memory.space != Space::device || memory.initialised) continue;
    for (size_t i = 0; i < memory.size; i++)
      if (!memory.shadow[i].write.thread) return fail("byte %zu of %s is never written", i, memory.name.c_str()), false;
  }
  return true;
}

const Accesses::Memory* Accesses::find(const void* address) const {
  const char* byte = static_cast<const char*>(address);
  for (const Memory& memory : memories_)
    if (byte >= memory.bytes && byte < memory.bytes + memory.size) return &memory;
  return nullptr;
}

Accesses::Access Accesses::by_current(Space space) const {
  const Builtins& builtins = current()->builtins;
  int kind = static_cast<int>(space);
  return {first_thread_ + builtins.thread_index_in_threadgroup, group_epoch_[kind],
          simdgroup_epoch_[builtins.simdgroup_index_in_threadgroup][kind], 0};
}

bool Accesses::same_simdgroup(const Access& a, const Access& b) {
  return (a.thread - 1) / kWidth == (b.thread - 1) / kWidth;
}

// Whether no barrier orders `before` before `now`.
bool Accesses::unordered(const Access& before, const Access& now) {
  if (!before.thread || before.thread == kAtomic || (before.thread == now.thread && !before.several)) return false;
  if ((before.thread - 1) / kMaxThreads != (now.thread - 1) / kMaxThreads) return true;
  if (before.group_epoch != now.group_epoch) return false;
  return before.several == 2 || !same_simdgroup(before, now) || before.simdgroup_epoch == now.simdgroup_epoch;
}

void Accesses::conflict(const Memory& memory, size_t offset, const AccessKind& before, const AccessKind& now) {
  uint32_t first = before.access.thread - 1, second = now.access.thread - 1;
  bool same_group = first / kMaxThreads == second / kMaxThreads;
  fail("byte %zu of %s: thread %u %s and thread %u %s it, %s", offset, memory.name.c_str(), first % kMaxThreads, before.verb,
       second % kMaxThreads, now.verb,
       same_group ? "with no barrier between that orders it" : "in different threadgroups");
  abandon_lane();
}

// One record represents all readers since the last write that are not ordered among each other.
void Accesses::add_reader(Access& read, const Access& now) {
  bool concurrent = read.thread && read.thread != now.thread && unordered(read, now);
  uint32_t several = concurrent ? (same_simdgroup(read, now) && read.several < 2 ? 1 : 2) : 0;
  if (!concurrent && read.thread == now.thread && read.group_epoch == now.group_epoch) several = read.several;
  read = now;
  read.several = several;
}

}  // namespace lanes

namespace {

bool on_own_stack(const void* address) {
  const lanes::Thread* thread = lanes::current();
  return !thread || thread->stack.holds(address);
}

void watched_read(const void* address, size_t size) {
  if (!on_own_stack(address)) lanes::accesses().read(address, size);
}

void watched_write(const void* address, size_t size) {
  if (!on_own_stack(address)) lanes::accesses().write(address, size);
}

}  // namespace

extern "C" {
#define LANES_HOOK(prefix, size)                                                              \
  LANES_EXPORT void __tsan_##prefix##read##size(void* address) { watched_read(address, size); } \
  LANES_EXPORT void __tsan_##prefix##write##size(void* address) { watched_write(address, size); }
LANES_HOOK(, 1)
LANES_HOOK(, 2)
LANES_HOOK(, 4)
LANES_HOOK(, 8)
LANES_HOOK(, 16)
LANES_HOOK(unaligned_, 2)
LANES_HOOK(unaligned_, 4)
LANES_HOOK(unaligned_, 8)
LANES_HOOK(unaligned_, 16)
#undef LANES_HOOK
LANES_EXPORT void __tsan_read_range(void* address, unsigned long size) { watched_read(address, size); }
LANES_EXPORT void __tsan_write_range(void* address, unsigned long size) { watched_write(address, size); }
LANES_EXPORT void* __tsan_memcpy(void* to, const void* from, unsigned long size) {
  watched_read(from, size);
  watched_write(to, size);
  return memcpy(to, from, size);
}
LANES_EXPORT void* __tsan_memset(void* to, int value, unsigned long size) {
  watched_write(to, size);
  return memset(to, value, size);
}
LANES_EXPORT void lanes_atomic_write(const void* address, unsigned long size) {
  lanes::accesses().write_atomically(address, size);
}
LANES_EXPORT void __tsan_init() {}
LANES_EXPORT void __tsan_func_entry(void*) {}
LANES_EXPORT void __tsan_func_exit() {}
}
