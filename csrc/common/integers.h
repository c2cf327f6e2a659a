// Sizes as multiples of others.
#pragma once

#include <cstdint>

#include "platform.h"

namespace resshift {

RSF_INLINE constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

RSF_INLINE constexpr std::int64_t round_up(std::int64_t size, std::int64_t multiple) {
  return divide_up(size, multiple) * multiple;
}

}  // namespace resshift
