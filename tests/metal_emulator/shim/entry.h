// Calls of kernels by a launch. The kernel's signature determines how each argument is passed.
#pragma once
#include "interface.h"

namespace lanes {

struct BufferArgument {
  int index;
};
struct ScalarArgument {
  unsigned Builtins::*member;
};
struct TripleArgument {
  Triple Builtins::*member;
};

template <class Parameter>
struct Bind {
  static Parameter get(void**, ScalarArgument from) { return static_cast<Parameter>(lanes_builtins()->*from.member); }
  static Parameter get(void**, TripleArgument from) {
    Triple value = lanes_builtins()->*from.member;
    return Parameter(value.x, value.y, value.z);
  }
};
template <class T>
struct Bind<T*> {
  static T* get(void** buffers, BufferArgument from) { return static_cast<T*>(buffers[from.index]); }
};
template <class T>
struct Bind<T&> {
  static T& get(void** buffers, BufferArgument from) { return *static_cast<T*>(buffers[from.index]); }
};

template <class... Parameters, class... Arguments>
inline void call(void (*kernel)(Parameters...), void** buffers, Arguments... from) {
  kernel(Bind<Parameters>::get(buffers, from)...);
}

// A threadgroup variable of a kernel. One `key` for each place in the text and type.
template <class T, int place>
METAL_FUNC T& threadgroup_variable(const char* name) {
  static const char key = 0;
  return *static_cast<T*>(lanes_threadgroup_variable(&key, name, sizeof(T), alignof(T)));
}

}  // namespace lanes
