// Fibers with one stack each, switched explicitly. Each thread of a kernel is a fiber.
#pragma once
#include <cstddef>

namespace lanes {

class Stack {
 public:
  explicit Stack(size_t index);
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  // Makes the next resume() start `entry` from its beginning, whatever ran here before.
  void restart(void (*entry)());
  void resume();
  // Called on the fiber: returns to the caller of resume().
  void suspend();
  // Whether a frame record, two addresses long, can be there.
  bool holds_frame(const void* frame) const {
    return static_cast<const char*>(frame) >= bottom_ && static_cast<const char*>(frame) + 2 * sizeof(void*) <= top_;
  }
  bool holds(const void* address) const { return address >= bottom_ && address < top_; }
  // Whether the address is in this stack or in the guard page below it, where it overflows.
  bool covers(const void* address) const;

 private:
  char* bottom_;
  char* top_;
  void* saved_ = nullptr;
  void* resumer_ = nullptr;
};

}  // namespace lanes
