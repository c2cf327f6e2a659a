// Vector quantization of CPU tensors.
#include "vector_quantize.h"

#include "../cpu/kernels/vector_quantize.h"
#include "../cpu/parallel.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Distances times channels that a thread computes at least.
constexpr int64_t kGrain = 1 << 17;

struct Cpu {
  using Call = VectorQuantize;

  explicit Cpu(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the first argument must be on the CPU"); }

  void run(const Call& call) const {
    const int64_t numbers = call.entries * call.channels;
    // The codebook as float32, which most are already.
    std::vector<float> converted(call.codebook_dtype == Dtype::kFloat32 ? 0 : static_cast<std::size_t>(numbers));
    for (std::size_t i = 0; i < converted.size(); ++i) {
      converted[i] = load(View{call.codebook, call.codebook_dtype}, static_cast<int64_t>(i));
    }
    const float* codebook = converted.empty() ? static_cast<const float*>(call.codebook) : converted.data();
    const auto kernel = RSF_KERNEL(vector_quantize);
    const int64_t grain = 1 + kGrain / (numbers * kPixels);
    parallel_for(0, blocks(call), grain, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(static_cast<std::size_t>(scratch_numbers(call)));
      kernel(call, codebook, scratch.data(), begin, end);
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_vector_quantize(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  library.impl("vector_quantize", TORCH_BOX(&vector_quantize<Cpu>));
}

}  // namespace resshift::bindings
