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
  int sum_order;  // of a reduction: 0 butterfly 1, 2, 4 ..; 1 from lane 0 up; 2 from lane 31 down; 3 butterfly 16, 8 ..
  int strict;     // a collective that not every lane of the simdgroup makes is an error
  int flush_denormals;
  int guard_at_start;  // buffers begin at a guard page instead of ending at one
  unsigned poison;     // byte that fills outputs and threadgroup memory
  unsigned cpu_seconds;
  int watch;  // the kernel was compiled to report its accesses
};

struct Counts {
  uint64_t threads, collectives, divergent, barriers;
};

constexpr unsigned kWidth = 32;
constexpr int kMaxDepth = 24;

// Return addresses from the kernel inwards: two lanes are at the same call exactly if these are equal.
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
  // Threads [0, count), made if need be; their builtins are the caller's to fill in.
  Thread& thread(unsigned index);
  // Runs them all to their end. False if something went wrong; failure() says what.
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

// The thread now running, or null.
Thread* current();

// The first thing that went wrong in this launch; empty if nothing has.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* failure();
void clear_failure();
// Called on a fiber: records the failure and never runs this lane again.
[[noreturn]] void abandon_lane();

// Carries out one simdgroup function for the lanes that called it; null where a lane did not.
void execute(const Call* const* calls, const Options& options);

}  // namespace lanes
