#include "residual_shift.h"

#include "kernels/residual_shift.h"
#include "parallel.h"

namespace resshift::cpu {
namespace {

// Pixels that a thread takes at least: drawing their noise then takes longer than handing them over.
constexpr std::int64_t kGrain = 2048;

}  // namespace

void chain_step(const ChainStep& call) {
  const auto kernel = RSF_KERNEL(chain_step);
  parallel_for(0, call.batch * call.height * call.width, kGrain,
               [&](std::int64_t begin, std::int64_t end) { kernel(call, begin, end); });
}

void q_sample(const QSample& call) {
  const auto kernel = RSF_KERNEL(q_sample);
  parallel_for(0, call.batch * call.pixels, kGrain,
               [&](std::int64_t begin, std::int64_t end) { kernel(call, begin, end); });
}

}  // namespace resshift::cpu
