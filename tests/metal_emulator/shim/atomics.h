// metal_atomic. Lanes run one at a time, so plain operations are atomic. They are not data races, so they are not watched
// like other accesses.
#pragma once
#include "interface.h"

#define LANES_ATOMIC inline __attribute__((__noinline__, no_sanitize("thread")))

namespace metal {

enum memory_order { memory_order_relaxed };
template <class T>
struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;

template <class T>
LANES_ATOMIC T atomic_load_explicit(const atomic<T>* object, memory_order) {
  return object->value;
}
template <class T, class U>
LANES_ATOMIC void atomic_store_explicit(atomic<T>* object, U desired, memory_order) {
  lanes::lanes_atomic_write(object, sizeof(T));
  object->value = static_cast<T>(desired);
}
#define LANES_FETCH(name, expression)                                                                \
  template <class T, class U>                                                                        \
  LANES_ATOMIC T atomic_##name##_explicit(atomic<T>* object, U operand, memory_order) {                \
    T old = object->value, y = static_cast<T>(operand);                                              \
    lanes::lanes_atomic_write(object, sizeof(T));                                                      \
    object->value = static_cast<T>(expression);                                                        \
    return old;                                                                                      \
  }
LANES_FETCH(exchange, y)
LANES_FETCH(fetch_add, old + y)
LANES_FETCH(fetch_sub, old - y)
LANES_FETCH(fetch_max, old < y ? y : old)
LANES_FETCH(fetch_min, y < old ? y : old)
LANES_FETCH(fetch_and, old & y)
LANES_FETCH(fetch_or, old | y)
LANES_FETCH(fetch_xor, old ^ y)
#undef LANES_FETCH

}  // namespace metal
#undef LANES_ATOMIC
