// Watches every load and store of a kernel: data races, and reads of memory that nothing has written.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lanes {

enum class Space : int { threadgroup, device };

// Memory that a barrier's mem_flags order: bit 0 device memory, bit 1 threadgroup memory, as in shim/simdgroup.h.
constexpr unsigned kOrdersDevice = 1, kOrdersThreadgroup = 2;

class Accesses {
 public:
  // Forgets all memory.
  void begin();
  // Watches memory, unless it is too large.
  void watch(std::string name, const char* bytes, size_t size, Space space, bool initialised);
  void begin_threadgroup(uint32_t serial);
  void pass_threadgroup_barrier(unsigned flags);
  void pass_simdgroup_barrier(unsigned simdgroup, unsigned flags);
  // Accesses by the running thread.
  void read(const void* address, size_t size);
  void write(const void* address, size_t size);
  void write_atomically(const void* address, size_t size);
  // Whether all bytes of all outputs are written. Records a failure that names the output if not.
  bool all_written() const;

 private:
  struct Access {
    uint32_t thread;  // of the launch, counted from 1; 0 for none, kAtomic for all at once
    uint32_t group_epoch, simdgroup_epoch;
    uint32_t several;  // readers: 0 one, 1 several of one simdgroup, 2 of several simdgroups
  };
  struct AccessKind {
    const Access& access;
    const char* verb;
  };
  struct Byte {
    Access write, read;
  };
  struct Memory {
    std::string name;
    const char* bytes;
    size_t size;
    Space space;
    bool initialised;
    Byte* shadow;
    size_t shadow_size;
  };

  const Memory* find(const void* address) const;
  Access by_current(Space space) const;
  static bool unordered(const Access& before, const Access& now);
  static bool same_simdgroup(const Access& a, const Access& b);
  [[noreturn]] static void conflict(const Memory& memory, size_t offset, const AccessKind& before, const AccessKind& now);
  static void add_reader(Access& read, const Access& now);

  std::vector<Memory> memories_;
  uint32_t first_thread_ = 1;
  uint32_t group_epoch_[2] = {}, simdgroup_epoch_[32][2] = {};
};

Accesses& accesses();

}  // namespace lanes
