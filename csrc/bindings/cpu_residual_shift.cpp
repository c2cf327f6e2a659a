// The residual shift on CPU tensors.
#include "../cpu/residual_shift.h"

#include "cpu.h"
#include "residual_shift.h"

namespace resshift::bindings {
namespace {

struct Cpu : OnCpu {
  using OnCpu::OnCpu;

  void run(const ChainStep& call) const { cpu::chain_step(call); }
  void run(const QSample& call) const { cpu::q_sample(call); }
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) { define_residual_shift(library); }

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) { implement_residual_shift<Cpu>(library); }

}  // namespace resshift::bindings
