#include "pointwise_conv2d.h"

#include "pointwise_conv2d_threads.h"

namespace resshift::cpu {
namespace {

// Every thread multiplies some pixels with the whole packed weight.
void run_by_pixels(const PointwiseConv2d& call) {
  const Workspace packed(packed_size(call, call.out_channels));
  pack_for_all(call, packed.data());
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const std::int64_t grain = pixel_grain(call.channels * call.out_channels);
  parallel_for(0, call.pixels, grain, [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(scratch_size(call));
    compute(slice(call, begin, end), 0, call.out_channels, packed.data(), scratch.data());
  });
}

}  // namespace

void pointwise_conv2d(const PointwiseConv2d& call) {
  by_columns(call.pixels, call.channels, call.out_channels) ? run_by_columns(call) : run_by_pixels(call);
}

}  // namespace resshift::cpu
