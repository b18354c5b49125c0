// Runs the threads of one threadgroup: 32 consecutive threads are a simdgroup, each thread a fiber.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "fiber.h"
#include "interface.h"

namespace lanes {

enum class LaneOrder : int { forward, reverse, shuffled };

struct Options {
  LaneOrder lane_order;
  unsigned seed;
  int sum_order;  // order of reductions: 0 butterfly 1, 2, 4 ..; 1 from lane 0 up; 2 from lane 31 down; 3 butterfly 16, 8 ..
  int strict;     // whether a collective call by only some lanes of the simdgroup is an error
  int flush_denormals;
  int guard_at_start;  // buffers begin at a guard page instead of ending at one
  unsigned poison;     // byte that fills outputs and threadgroup memory
  unsigned cpu_seconds;
  int watch;  // whether the kernel was compiled to report its accesses
};

struct Counts {
  uint64_t threads, collectives, divergent, barriers;
};

constexpr unsigned kWidth = 32;
constexpr int kMaxDepth = 24;

// Return addresses of a lane. Two lanes are at the same call if and only if these are equal.
struct CallPath {
  uint64_t hash;
  int depth;
  const void* address[kMaxDepth];

  void record(const void* const* frame, const Stack& stack);
  int compare(const CallPath& other) const;
  bool operator==(const CallPath& other) const {
    return hash == other.hash && depth == other.depth &&
           memcmp(address, other.address, static_cast<size_t>(depth) * sizeof *address) == 0;
  }
};

enum class State : uint8_t { ready, at_collective, at_barrier, finished };

struct Thread {
  explicit Thread(size_t index) : stack(index) {}
  Stack stack;
  State state = State::finished;
  const Call* call = nullptr;
  const char* file = nullptr;  // where it waits at a barrier
  unsigned line = 0;
  unsigned flags = 0;  // of that barrier
  CallPath path;
  Builtins builtins;
};

class Scheduler {
 public:
  // Returns a thread, creating it if need be. The caller fills in its builtins.
  Thread& thread(unsigned index);
  // Runs all threads to their end. Returns false on failure, and failure() has the reason.
  bool run(Kernel kernel, void** buffers, unsigned count, const Options& options, Counts& counts);

 private:
  bool run_simdgroup(unsigned first, unsigned count);
  bool run_ready(unsigned first, unsigned count);
  bool run_collective(unsigned first, unsigned count);
  bool pass_barrier();

  std::vector<std::unique_ptr<Thread>> threads_;
  std::mt19937 random_;
  unsigned count_ = 0;
  const Options* options_ = nullptr;
  Counts* counts_ = nullptr;
};

// Returns the running thread, or null.
Thread* current();

// First failure of this launch; empty if there is none.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* failure();
void clear_failure();
// Called on a fiber: records the failure and never runs this lane again.
[[noreturn]] void abandon_lane();

// Executes one simdgroup function. `calls` has null for lanes that did not make the call.
void execute(const Call* const* calls, const Options& options);

}  // namespace lanes
