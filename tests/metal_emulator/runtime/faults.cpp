#include "faults.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <csignal>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <ucontext.h>
#endif

#include "scheduler.h"

namespace lanes {

sigjmp_buf after_fault;

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGVTALRM};
constexpr int kCount = sizeof kSignals / sizeof *kSignals;
constexpr size_t kStackBytes = 64 * 1024;

struct sigaction previous[kCount];
stack_t previous_stack;
pthread_t launching;
Describe describe_address;
unsigned seconds;

// Returns "reads" or "writes" if the processor reports it.
const char* access_kind(void* context) {
#if defined(__linux__) && defined(__x86_64__)
  return static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2 ? "writes" : "reads";
#else
  (void)context;
  return "touches";
#endif
}

void report_access(const void* address, void* context) {
  const Thread* thread = current();
  unsigned index = thread ? thread->builtins.thread_index_in_threadgroup : 0;
  char place[256];
  if (describe_address(address, place, sizeof place))
    fail("thread %u of its threadgroup %s %s", index, access_kind(context), place);
  else if (thread && thread->stack.covers(address))
    fail("thread %u of its threadgroup overflows its stack", index);
  else
    fail("thread %u of its threadgroup %s address %p, which is in no buffer, or is not aligned", index,
         access_kind(context), address);
}

void handle(int signal, siginfo_t* info, void* context) {
  if (!pthread_equal(pthread_self(), launching)) {
    if (signal == SIGVTALRM) {
      pthread_kill(launching, SIGVTALRM);
      return;
    }
    // The fault is in another thread. Restore the previous handlers, so that it is handled as without this one.
    for (int i = 0; i < kCount; i++)
      if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
    return;
  }
  if (signal == SIGVTALRM)
    fail("still running after %u seconds of processor time", seconds);
  else if (signal == SIGSEGV || signal == SIGBUS)
    report_access(info->si_addr, context);
  else
    fail("signal %d in the kernel", signal);
  siglongjmp(after_fault, 1);
}

void* signal_stack() {
  static void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return stack;
}

void set_timer(unsigned after_seconds) {
  itimerval timer = {};
  timer.it_value.tv_sec = after_seconds;
  setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

}  // namespace

FaultGuard::FaultGuard(Describe describe, unsigned cpu_seconds) {
  launching = pthread_self();
  describe_address = describe;
  seconds = cpu_seconds;
  // A fiber that overflowed its stack cannot handle a signal on it.
  stack_t stack = {};
  stack.ss_sp = signal_stack();
  stack.ss_size = kStackBytes;
  sigaltstack(&stack, &previous_stack);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &action, &previous[i]);
  if (cpu_seconds) set_timer(cpu_seconds);
}

FaultGuard::~FaultGuard() {
  set_timer(0);
  for (int i = 0; i < kCount; i++) sigaction(kSignals[i], &previous[i], nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace lanes
