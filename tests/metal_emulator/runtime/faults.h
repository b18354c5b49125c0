// Turns a fault in kernel code into a failure of the launch.
#pragma once
#include <csetjmp>
#include <cstddef>

namespace lanes {

// Writes where an address belongs into the text; false if it belongs nowhere.
using Describe = bool (*)(const void* address, char* text, size_t room);

class FaultGuard {
 public:
  FaultGuard(Describe describe, unsigned cpu_seconds);
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;
  ~FaultGuard();
};

// Where a fault returns to: set with sigsetjmp before a FaultGuard is made.
extern sigjmp_buf after_fault;

}  // namespace lanes
