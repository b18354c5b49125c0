// Turns a fault in kernel code into a failure of the launch.
#pragma once
#include <csetjmp>
#include <cstddef>

namespace lanes {

// Describes the place of an address in the text. Returns false if the address is in no known memory.
using Describe = bool (*)(const void* address, char* text, size_t room);

class FaultGuard {
 public:
  FaultGuard(Describe describe, unsigned cpu_seconds);
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;
  ~FaultGuard();
};

// Point to which a fault returns. Set it with sigsetjmp before creating a FaultGuard.
extern sigjmp_buf after_fault;

}  // namespace lanes
