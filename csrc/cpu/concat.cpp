#include "concat.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace resshift::cpu {
namespace {

// Bytes that a thread copies at least: handing over fewer costs more than they do.
constexpr std::int64_t kGrain = 1 << 17;

template <class T>
void leaky_relu(T* values, std::int64_t count, float slope) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = to_float(values[i]);
    values[i] = from_float<T>(std::max(value, value * slope));  // no branch, for slopes up to 1
  }
}

template <class T>
void run_concat(const Concat& call) {
  const std::int64_t first = call.channels, second = call.other_channels;
  const auto *x = static_cast<const T*>(call.x), *other = static_cast<const T*>(call.other);
  auto* const y = static_cast<T*>(call.y);
  const std::int64_t bytes = (first + second) * static_cast<std::int64_t>(sizeof(T));
  parallel_for(0, call.pixels, kGrain / bytes + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      T* const out = y + pixel * (first + second);
      std::memcpy(out, x + pixel * first, static_cast<std::size_t>(first) * sizeof(T));
      std::memcpy(out + first, other + pixel * second, static_cast<std::size_t>(second) * sizeof(T));
      if (call.slope != 1) leaky_relu(out + first, second, call.slope);
    }
  });
}

}  // namespace

void concat(const Concat& call) {
  dispatch(call.dtype, [&](auto type) { run_concat<typename decltype(type)::type>(call); });
}

}  // namespace resshift::cpu
