#include "spatial_attention.h"

#include "kernels/spatial_attention.h"
#include "parallel.h"
#include "workspace.h"

namespace resshift::cpu {
namespace {

// Multiplications that a thread takes at least: handing over fewer costs more than they do.
constexpr std::int64_t kGrain = 1 << 18;

}  // namespace

void spatial_attention(const SpatialAttention& call) {
  const Workspace packed(2 * call.batch * packed_size(call));
  float *const keys = packed.data(), *const values = keys + call.batch * packed_size(call);
  const auto pack = RSF_KERNEL(pack_pixels);
  parallel_for(0, call.batch * divide_up(call.pixels, kPackedPixels), kGrain / (8 * kPackedPixels * call.channels) + 1,
               [&](std::int64_t begin, std::int64_t end) { pack(call, begin, end, keys, values); });
  const auto attend = RSF_KERNEL(spatial_attention);
  const std::int64_t grain = round_up(kGrain / (2 * call.pixels * call.channels) + 1, kQueries / 2);
  parallel_for(0, call.batch * call.pixels, grain, [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(scratch_size(call));
    attend(call, keys, values, begin, end, scratch.data());
  });
}

}  // namespace resshift::cpu
