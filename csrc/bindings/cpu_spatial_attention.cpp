// Attention between all pixels of images on CPU tensors.
#include "../cpu/kernels/spatial_attention.h"

#include "channels_last.h"
#include "../cpu/parallel.h"
#include "tensors.h"
#include "../cpu/workspace.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Multiplications that a thread takes at least: handing over fewer costs more than they do.
constexpr int64_t kGrain = 1 << 18;

void run(const SpatialAttention& call) {
  const Workspace packed(2 * call.batch * packed_size(call));
  float *const keys = packed.data(), *const values = keys + call.batch * packed_size(call);
  const auto pack = RSF_KERNEL(pack_pixels);
  const int64_t groups = call.batch * (round_up(call.pixels, kPackedPixels) / kPackedPixels);
  parallel_for(0, groups, kGrain / (8 * kPackedPixels * call.channels) + 1,
               [&](int64_t begin, int64_t end) { pack(call, begin, end, keys, values); });
  const auto attend = RSF_KERNEL(spatial_attention);
  const int64_t grain = kGrain / (2 * call.pixels * call.channels) + 1;
  parallel_for(0, call.batch * call.pixels, grain, [&](int64_t begin, int64_t end) {
    const Workspace scratch(scratch_size(call));
    attend(call, keys, values, begin, end, scratch.data());
  });
}

Tensor spatial_attention(Tensor q, Tensor k, Tensor v) {
  STD_TORCH_CHECK(q.is_cpu() && q.dim() == 4 && q.numel() > 0, "q must be [B, C, H, W] on the CPU and not empty");
  check_like(k, q, "k");
  check_like(v, q, "v");
  STD_TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
                  "k and v must have q's dtype");
  const Tensor queries = channels_last(q), keys = channels_last(k), values = channels_last(v);
  ImageLike out(q);
  run({queries.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), out.data(), dtype_of(q, "q"),
       q.size(0), q.size(2) * q.size(3), q.size(1)});
  return out.finished();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("spatial_attention(Tensor q, Tensor k, Tensor v) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("spatial_attention", TORCH_BOX(&spatial_attention));
}

}  // namespace resshift::bindings
