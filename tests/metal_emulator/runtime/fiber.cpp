#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

// Saves the callee-saved registers and the stack pointer, then continues on another stack. All fibers share the
// floating-point control registers, so these are not saved.
extern "C" void lanes_switch(void** save, void* load);

#if defined(__APPLE__)
#define LANES_SYMBOL "_lanes_switch"
#else
#define LANES_SYMBOL "lanes_switch"
#endif

#if defined(__x86_64__)
asm(".text\n.globl " LANES_SYMBOL "\n" LANES_SYMBOL R"(:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
asm(".text\n.p2align 2\n.globl " LANES_SYMBOL "\n" LANES_SYMBOL R"(:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "fibers are written for x86-64 and arm64"
#endif

// Defined only if the runtime of AddressSanitizer is loaded.
extern "C" __attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, size_t);

namespace lanes {

namespace {
constexpr size_t kStackBytes = 256 * 1024;
}

Stack::Stack(size_t index) {
  size_t guard = static_cast<size_t>(getpagesize());
  void* memory = mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) abort();
  bottom_ = static_cast<char*>(memory) + guard;
  // Stacks with tops at the same page offset would compete for the same cache lines, so the tops are staggered.
  top_ = bottom_ + kStackBytes - (index % 32) * 448;
}

void Stack::restart(void (*entry)()) {
  // A lane that was abandoned in a call leaves the red zones of its frames poisoned.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom_, kStackBytes);
#if defined(__x86_64__)
  void** slot = reinterpret_cast<void**>(top_);
  *--slot = nullptr;  // where `entry` would return to; also makes its stack pointer 8 modulo 16, as after a call
  *--slot = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--slot = nullptr;  // a frame pointer of zero ends the walk of the call path
  saved_ = slot;
#else
  char* frame = top_ - 160;
  memset(frame, 0, 160);
  reinterpret_cast<void**>(frame + 80)[1] = reinterpret_cast<void*>(entry);
  saved_ = frame;
#endif
}

void Stack::resume() { lanes_switch(&resumer_, saved_); }

void Stack::suspend() { lanes_switch(&saved_, resumer_); }

bool Stack::covers(const void* address) const {
  return static_cast<const char*>(address) >= bottom_ - getpagesize() && static_cast<const char*>(address) < top_;
}

}  // namespace lanes
