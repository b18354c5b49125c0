// Handlers for the compiler's checks of undefined behaviour (-fsanitize=...), in place of the sanitizer's own library.
// The first argument of each handler points to the place in the text.
#include <cstdint>

#include "scheduler.h"

namespace {

struct Place {
  const char* file;
  uint32_t line, column;
};

void report(const void* data, const char* what) {
  const Place* place = static_cast<const Place*>(data);
  lanes::fail("%s:%u: %s", place->file, place->line, what);
  lanes::abandon_lane();
}

}  // namespace

extern "C" {
#define LANES_CHECK(name, what) \
  LANES_EXPORT void __ubsan_handle_##name(const void* data, ...) { report(data, what); }
LANES_CHECK(out_of_bounds, "index out of the array's bounds")
LANES_CHECK(shift_out_of_bounds, "shift by a negative number or by more than there are bits")
LANES_CHECK(add_overflow, "integer overflow")
LANES_CHECK(sub_overflow, "integer overflow")
LANES_CHECK(mul_overflow, "integer overflow")
LANES_CHECK(negate_overflow, "integer overflow")
LANES_CHECK(divrem_overflow, "division by zero or its overflow")
LANES_CHECK(float_cast_overflow, "conversion of a number that the integer type cannot hold")
LANES_CHECK(load_invalid_value, "a bool that is neither true nor false")
LANES_CHECK(type_mismatch_v1, "misaligned or null address")
LANES_CHECK(pointer_overflow, "address computed outside of memory")
LANES_CHECK(missing_return, "function ends without a value")
LANES_CHECK(builtin_unreachable, "unreachable code reached")
LANES_CHECK(vla_bound_not_positive, "array without elements")
LANES_CHECK(invalid_builtin, "builtin of a value it does not take")
#undef LANES_CHECK
}
