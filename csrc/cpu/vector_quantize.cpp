#include "vector_quantize.h"

#include <vector>

#include "kernels/vector_quantize.h"
#include "parallel.h"

namespace resshift::cpu {
namespace {

// Distances times channels that a thread computes at least.
constexpr std::int64_t kGrain = 1 << 17;

}  // namespace

void vector_quantize(const VectorQuantize& call) {
  const std::int64_t size = call.entries * call.channels;
  // The codebook as float32, which most are already.
  std::vector<float> converted(call.codebook_dtype == Dtype::kFloat32 ? 0 : static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < converted.size(); ++i) {
    converted[i] = load(View{call.codebook, call.codebook_dtype}, static_cast<std::int64_t>(i));
  }
  const float* codebook = converted.empty() ? static_cast<const float*>(call.codebook) : converted.data();
  const auto kernel = RSF_KERNEL(vector_quantize);
  const std::int64_t grain = 1 + kGrain / (size * kPixels);
  parallel_for(0, blocks(call), grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> scratch(static_cast<std::size_t>(scratch_size(call)));
    kernel(call, codebook, scratch.data(), begin, end);
  });
}

}  // namespace resshift::cpu
