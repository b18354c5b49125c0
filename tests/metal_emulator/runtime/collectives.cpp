// Simdgroup functions on the values of the lanes that call them.
#include <cstring>
#include <type_traits>

#include "scheduler.h"

namespace lanes {

namespace {

using Calls = const Call* const*;
constexpr size_t kWidestValue = 64;

// bfloat16 as an arithmetic type: widened to compute, rounded to nearest even.
struct Bfloat {
  uint16_t bits = 0;
  Bfloat() = default;
  explicit Bfloat(int value) : Bfloat(static_cast<float>(value)) {}
  explicit Bfloat(float value) {
    uint32_t wide;
    memcpy(&wide, &value, 4);
    bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (wide >> 16) | 0x40u : (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16);
  }
  operator float() const {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
};

// ---- moving values between lanes ----

struct Source {
  int lane;       // lane of the value
  bool fill;      // whether to take its `fill`, not its `value`
};

Source source_of(const Call& call, int lane) {
  int distance = static_cast<int>(call.parameter);
  switch (call.operation) {
    case Operation::shuffle: return {distance, false};
    case Operation::shuffle_xor: return {lane ^ distance, false};
    case Operation::rotate_up: return {(lane - distance) & 31, false};
    case Operation::rotate_down: return {(lane + distance) & 31, false};
    // Lanes without a source lane keep their own value.
    case Operation::shuffle_up: return {lane < distance ? lane : lane - distance, false};
    case Operation::shuffle_down: return {lane + distance > 31 ? lane : lane + distance, false};
    case Operation::fill_up: return lane < distance ? Source{32 + lane - distance, true} : Source{lane - distance, false};
    case Operation::fill_down:
      return lane + distance > 31 ? Source{lane + distance - 32, true} : Source{lane + distance, false};
    default: return {lane, false};
  }
}

void move_values(Calls calls, bool strict) {
  unsigned char values[kWidth][kWidestValue], fills[kWidth][kWidestValue];
  for (unsigned i = 0; i < kWidth; i++) {
    if (!calls[i]) continue;
    memcpy(values[i], calls[i]->value, calls[i]->bytes);
    if (calls[i]->fill) memcpy(fills[i], calls[i]->fill, calls[i]->bytes);
  }
  for (unsigned i = 0; i < kWidth; i++) {
    if (!calls[i]) continue;
    const Call& call = *calls[i];
    Source source = source_of(call, static_cast<int>(i));
    if (source.lane >= 0 && source.lane < static_cast<int>(kWidth) && calls[source.lane]) {
      memcpy(call.result, source.fill ? fills[source.lane] : values[source.lane], call.bytes);
      continue;
    }
    memset(call.result, 0xFF, call.bytes);
    if (strict)
      fail("%s:%u: %s: lane %u reads lane %d, which is not active", call.file, call.line, call.name, i, source.lane);
  }
}

void broadcast_first(Calls calls) {
  unsigned first = 0;
  while (!calls[first]) first++;
  unsigned char value[kWidestValue];
  memcpy(value, calls[first]->value, calls[first]->bytes);
  for (unsigned i = 0; i < kWidth; i++)
    if (calls[i]) memcpy(calls[i]->result, value, calls[i]->bytes);
}

// Sets the bit of each lane whose value is true, or of each active lane.
void ballot(Calls calls, bool values) {
  uint64_t mask = 0;
  for (unsigned i = 0; i < kWidth; i++)
    if (calls[i] && (!values || *static_cast<const bool*>(calls[i]->value))) mask |= uint64_t{1} << i;
  for (unsigned i = 0; i < kWidth; i++)
    if (calls[i]) memcpy(calls[i]->result, &mask, sizeof mask);
}

// ---- reductions ----

template <class T>
T combine(Operation operation, T a, T b) {
  switch (operation) {
    case Operation::product:
    case Operation::inclusive_product:
    case Operation::exclusive_product: return static_cast<T>(a * b);
    case Operation::minimum: return b < a ? b : a;
    case Operation::maximum: return a < b ? b : a;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (operation == Operation::bit_and) return static_cast<T>(a & b);
    if (operation == Operation::bit_or) return static_cast<T>(a | b);
    if (operation == Operation::bit_xor) return static_cast<T>(a ^ b);
  }
  return static_cast<T>(a + b);
}

template <class T>
struct Lane {
  T value;
  bool active;
};

template <class T>
Lane<T> combine(Operation operation, Lane<T> a, Lane<T> b) {
  if (!a.active) return b;
  return b.active ? Lane<T>{combine(operation, a.value, b.value), true} : a;
}

// Metal leaves the order open; results that depend on it are seen by running with several.
template <class T>
void reduce(Operation operation, int order, Lane<T> (&lanes)[kWidth]) {
  if (order == 1 || order == 2) {
    Lane<T> all{T(0), false};
    for (unsigned i = 0; i < kWidth; i++) all = combine(operation, all, lanes[order == 1 ? i : kWidth - 1 - i]);
    for (Lane<T>& lane : lanes) lane = all;
    return;
  }
  for (unsigned step = 0; step < 5; step++) {
    unsigned distance = order == 3 ? 16u >> step : 1u << step;
    Lane<T> next[kWidth];
    for (unsigned i = 0; i < kWidth; i++) next[i] = combine(operation, lanes[i & ~distance], lanes[i | distance]);
    memcpy(static_cast<void*>(lanes), next, sizeof next);
  }
}

template <class T>
void scan(Operation operation, Lane<T> (&lanes)[kWidth]) {
  bool product = operation == Operation::inclusive_product || operation == Operation::exclusive_product;
  bool inclusive = operation == Operation::inclusive_product || operation == Operation::inclusive_sum;
  T before = T(product ? 1 : 0);
  for (Lane<T>& lane : lanes) {
    if (!lane.active) continue;
    T after = combine(operation, before, lane.value);
    lane.value = inclusive ? after : before;
    before = after;
  }
}

template <class T>
void reduce_components(Calls calls, const Call& call, const Options& options) {
  bool is_scan = call.operation >= Operation::inclusive_sum && call.operation <= Operation::exclusive_product;
  for (size_t offset = 0; offset + sizeof(T) <= call.bytes; offset += sizeof(T)) {
    Lane<T> lanes[kWidth];
    for (unsigned i = 0; i < kWidth; i++) {
      lanes[i] = {T(0), calls[i] != nullptr};
      if (calls[i]) memcpy(&lanes[i].value, static_cast<const char*>(calls[i]->value) + offset, sizeof(T));
    }
    is_scan ? scan(call.operation, lanes) : reduce(call.operation, options.sum_order, lanes);
    for (unsigned i = 0; i < kWidth; i++)
      if (calls[i]) memcpy(static_cast<char*>(calls[i]->result) + offset, &lanes[i].value, sizeof(T));
  }
}

void reduce_values(Calls calls, const Call& call, const Options& options) {
  switch (call.scalar) {
    case Scalar::f32: return reduce_components<float>(calls, call, options);
    case Scalar::f16: return reduce_components<_Float16>(calls, call, options);
    case Scalar::bf16: return reduce_components<Bfloat>(calls, call, options);
    case Scalar::i8: return reduce_components<int8_t>(calls, call, options);
    case Scalar::u8: return reduce_components<uint8_t>(calls, call, options);
    case Scalar::i16: return reduce_components<int16_t>(calls, call, options);
    case Scalar::u16: return reduce_components<uint16_t>(calls, call, options);
    case Scalar::i32: return reduce_components<int32_t>(calls, call, options);
    case Scalar::u32: return reduce_components<uint32_t>(calls, call, options);
    case Scalar::i64: return reduce_components<int64_t>(calls, call, options);
    case Scalar::u64: return reduce_components<uint64_t>(calls, call, options);
    case Scalar::none: fail("%s:%u: %s of a type it is not made for", call.file, call.line, call.name);
  }
}

}  // namespace

void execute(const Call* const* calls, const Options& options) {
  unsigned first = 0;
  while (!calls[first]) first++;
  const Call& call = *calls[first];
  switch (call.operation) {
    case Operation::barrier: return;
    case Operation::ballot: return ballot(calls, true);
    case Operation::active: return ballot(calls, false);
    case Operation::broadcast_first: return broadcast_first(calls);
    default: break;
  }
  if (call.operation < Operation::broadcast_first) return move_values(calls, options.strict != 0);
  reduce_values(calls, call, options);
}

}  // namespace lanes
