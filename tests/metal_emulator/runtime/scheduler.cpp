// Threads run until they wait in a simdgroup function or at a barrier. When no lane of a simdgroup can continue, waiting
// lanes are grouped by call path, and the call of the group that is first in program order is executed. This is the
// reconvergence of structured programs.
#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

#include "accesses.h"

namespace lanes {

namespace {

Thread* running = nullptr;
Kernel kernel_to_run = nullptr;
void** buffers_to_pass = nullptr;
char message[512];

void wait(State state) {
  Thread* self = running;
  self->state = state;
  self->stack.suspend();
}

// Entry function of fibers. It never returns.
void run_kernel() {
  kernel_to_run(buffers_to_pass);
  wait(State::finished);
}

}  // namespace

Thread* current() { return running; }
const char* failure() { return message; }
void clear_failure() { message[0] = 0; }

void fail(const char* format, ...) {
  if (message[0]) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
}

void abandon_lane() {
  for (;;) wait(State::finished);
}

void CallPath::record(const void* const* frame, const Stack& stack) {
  int found = 0;
  uint64_t mixed = 0;
  while (stack.holds_frame(frame) && found < kMaxDepth) {
    address[found++] = frame[1];
    mixed = (mixed ^ reinterpret_cast<uint64_t>(frame[1])) * 0x9E3779B97F4A7C15ull;
    const void* const* next = static_cast<const void* const*>(frame[0]);
    if (next <= frame) break;  // stacks grow down: a caller's frame lies above
    frame = next;
  }
  depth = found;
  hash = mixed;
}

int CallPath::compare(const CallPath& other) const {
  // Paths are recorded from the innermost frame, but compared from the outermost, which is the program order.
  for (int i = 1; i <= std::min(depth, other.depth); i++) {
    const void *mine = address[depth - i], *theirs = other.address[other.depth - i];
    if (mine != theirs) return mine < theirs ? -1 : 1;
  }
  return depth - other.depth;
}

Thread& Scheduler::thread(unsigned index) {
  while (threads_.size() <= index) threads_.push_back(std::make_unique<Thread>(threads_.size()));
  return *threads_[index];
}

bool Scheduler::run(Kernel kernel, void** buffers, unsigned count, const Options& options, Counts& counts) {
  kernel_to_run = kernel;
  buffers_to_pass = buffers;
  count_ = count;
  options_ = &options;
  counts_ = &counts;
  random_.seed(options.seed);
  for (unsigned i = 0; i < count; i++) {
    threads_[i]->stack.restart(run_kernel);
    threads_[i]->state = State::ready;
  }
  counts.threads += count;
  unsigned groups = (count + kWidth - 1) / kWidth;
  do {
    for (unsigned i = 0; i < groups; i++) {
      unsigned group = options.lane_order == LaneOrder::reverse ? groups - 1 - i : i;
      unsigned first = group * kWidth;
      if (!run_simdgroup(first, std::min(kWidth, count - first))) return false;
    }
  } while (pass_barrier());
  return !message[0];
}

bool Scheduler::run_simdgroup(unsigned first, unsigned count) {
  do {
    if (!run_ready(first, count)) return false;
  } while (run_collective(first, count));
  return !message[0];
}

bool Scheduler::run_ready(unsigned first, unsigned count) {
  unsigned char order[kWidth];
  for (unsigned i = 0; i < count; i++) order[i] = options_->lane_order == LaneOrder::reverse ? count - 1 - i : i;
  if (options_->lane_order == LaneOrder::shuffled) std::shuffle(order, order + count, random_);
  for (unsigned i = 0; i < count; i++) {
    Thread* thread = threads_[first + order[i]].get();
    if (thread->state != State::ready) continue;
    running = thread;
    thread->stack.resume();
    running = nullptr;
    if (message[0]) return false;
  }
  return true;
}

// Executes the call of one group. Returns false if no lane waits, or on failure.
bool Scheduler::run_collective(unsigned first, unsigned count) {
  Thread* leader = nullptr;
  for (unsigned i = first; i < first + count; i++) {
    Thread* thread = threads_[i].get();
    if (thread->state != State::at_collective) continue;
    if (!leader || (thread->path.hash != leader->path.hash && thread->path.compare(leader->path) < 0)) leader = thread;
  }
  if (!leader) return false;
  const Call* calls[kWidth] = {};
  unsigned members = 0;
  for (unsigned i = 0; i < count; i++) {
    Thread* thread = threads_[first + i].get();
    if (thread->state != State::at_collective || !(thread->path == leader->path)) continue;
    calls[i] = thread->call;
    members++;
  }
  const Call& call = *leader->call;
  counts_->collectives++;
  if (members != count) {
    counts_->divergent++;
    if (options_->strict)
      fail("%s:%u: divergent %s: %u of %u lanes make the call", call.file, call.line, call.name, members, count);
  }
  if (!message[0]) execute(calls, *options_);
  if (call.operation == Operation::barrier) accesses().pass_simdgroup_barrier(first / kWidth, call.parameter);
  if (message[0]) return false;
  for (unsigned i = 0; i < count; i++)
    if (calls[i]) threads_[first + i]->state = State::ready;
  return true;
}

// Passes the barrier if all threads wait at the same one, and returns true then.
bool Scheduler::pass_barrier() {
  Thread* leader = nullptr;
  unsigned waiting = 0;
  bool same = true;
  for (unsigned i = 0; i < count_; i++) {
    Thread* thread = threads_[i].get();
    if (thread->state != State::at_barrier) continue;
    if (!leader) leader = thread;
    same = same && thread->path == leader->path;
    waiting++;
  }
  if (!waiting) return false;
  const char* place = leader->file;
  if (waiting != count_)
    fail("%s:%u: threadgroup_barrier reached by %u of %u threads", place, leader->line, waiting, count_);
  if (!same) fail("%s:%u: threads wait at different calls of threadgroup_barrier", place, leader->line);
  if (message[0]) return false;
  counts_->barriers++;
  accesses().pass_threadgroup_barrier(leader->flags);
  for (unsigned i = 0; i < count_; i++) threads_[i]->state = State::ready;
  return true;
}

extern "C" __attribute__((noinline)) void lanes_collective(const Call* call) {
  Thread* self = running;
  self->call = call;
  self->path.record(static_cast<const void* const*>(__builtin_frame_address(0)), self->stack);
  wait(State::at_collective);
}

extern "C" __attribute__((noinline)) void lanes_threadgroup_barrier(unsigned flags, const char* file, unsigned line) {
  Thread* self = running;
  self->flags = flags;
  self->file = file;
  self->line = line;
  self->path.record(static_cast<const void* const*>(__builtin_frame_address(0)), self->stack);
  wait(State::at_barrier);
}

extern "C" const Builtins* lanes_builtins() { return &running->builtins; }

}  // namespace lanes
