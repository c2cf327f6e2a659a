// The residual shift on CPU tensors.
#include "../cpu/kernels/residual_shift.h"

#include "../cpu/parallel.h"
#include "residual_shift.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Pixels that a thread takes at least: drawing their noise then outweighs handing them over.
constexpr int64_t kGrain = 2048;

struct Cpu {
  explicit Cpu(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the first argument must be on the CPU"); }

  void operator()(const ChainStep& call) const {
    const auto kernel = RSF_KERNEL(chain_step);
    parallel_for(0, call.batch * call.height * call.width, kGrain,
                 [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  }

  void operator()(const QSample& call) const {
    const auto kernel = RSF_KERNEL(q_sample);
    parallel_for(0, call.batch * call.pixels, kGrain, [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_residual_shift(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { implement_residual_shift<Cpu>(library); }

}  // namespace resshift::bindings
