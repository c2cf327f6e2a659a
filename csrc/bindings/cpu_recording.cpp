// What loops the calling thread's operators share among threads, for models and tests.
#include "../cpu/recording.h"

#include "tensors.h"

namespace resshift::bindings {
namespace {

void record_loops(int64_t threads, bool run) {
  STD_TORCH_CHECK(threads >= 1, "the number of threads must be at least 1");
  cpu::begin_recording(threads, run);
}

// int64 [loops, 3]: iterations, grain and nanoseconds of each since `record_loops`.
Tensor recorded_loops() {
  const std::vector<cpu::RecordedLoop> loops = cpu::end_recording();
  const std::vector<int64_t> size{static_cast<int64_t>(loops.size()), 3};
  Tensor found = torch::stable::empty(size, ScalarType::Long);
  auto* out = static_cast<int64_t*>(found.mutable_data_ptr());
  for (const cpu::RecordedLoop& loop : loops) {
    for (const int64_t value : {loop.iterations, loop.grain, loop.nanoseconds}) *out++ = value;
  }
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("record_loops(int threads, bool run) -> ()");
  library.def("recorded_loops() -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CompositeExplicitAutograd, library) {
  library.impl("record_loops", TORCH_BOX(&record_loops));
  library.impl("recorded_loops", TORCH_BOX(&recorded_loops));
}

}  // namespace resshift::bindings
