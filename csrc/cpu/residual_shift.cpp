#include "residual_shift.h"

#include "../common/integers.h"
#include "kernels/residual_shift.h"
#include "parallel.h"

namespace resshift::cpu {
namespace {

// Values that a thread takes at least: drawing their noise then takes longer than handing them over.
constexpr std::int64_t kGrain = 6144;

}  // namespace

void chain_step(const ChainStep& call) {
  const auto kernel = RSF_KERNEL(chain_step);
  parallel_for(0, call.batch * call.height * call.width, divide_up(kGrain, call.channels),
               [&](std::int64_t begin, std::int64_t end) { kernel(call, begin, end); });
}

void q_sample(const QSample& call) {
  const auto kernel = RSF_KERNEL(q_sample);
  parallel_for(0, call.batch * call.pixels, divide_up(kGrain, call.channels),
               [&](std::int64_t begin, std::int64_t end) { kernel(call, begin, end); });
}

}  // namespace resshift::cpu
