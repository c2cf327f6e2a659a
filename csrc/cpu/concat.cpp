#include "concat.h"

#include <cstring>

#include "parallel.h"

namespace resshift::cpu {
namespace {

// Bytes that a thread copies at least: handing over fewer costs more than they do.
constexpr std::int64_t kGrain = 1 << 17;

}  // namespace

void concat(const Concat& call) {
  const std::int64_t bytes = call.bytes + call.other_bytes;
  const auto *x = static_cast<const char*>(call.x), *other = static_cast<const char*>(call.other);
  auto* const y = static_cast<char*>(call.y);
  parallel_for(0, call.pixels, kGrain / bytes + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pixel = begin; pixel < end; ++pixel) {
      std::memcpy(y + pixel * bytes, x + pixel * call.bytes, static_cast<std::size_t>(call.bytes));
      std::memcpy(y + pixel * bytes + call.bytes, other + pixel * call.other_bytes,
                  static_cast<std::size_t>(call.other_bytes));
    }
  });
}

}  // namespace resshift::cpu
