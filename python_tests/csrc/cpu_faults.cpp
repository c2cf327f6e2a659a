// Deliberate faults of the kinds that kernels can have, for test_cpu_sanitizers.py.
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "../../csrc/bindings/tensors.h"
#include "../../csrc/cpu/parallel.h"
#include "../../csrc/cpu/thread_pool.h"
#include "../../csrc/cpu/workspace.h"

namespace resshift::faults {
namespace {

using bindings::Tensor;
using cpu::parallel_for;
using cpu::Workspace;

double read(Tensor x, int64_t index) { return static_cast<const float*>(x.const_data_ptr())[index]; }

double read_scratch(int64_t floats, int64_t index) {
  const Workspace scratch(floats);
  return scratch.data()[index];
}

double read_variable(int64_t index) {
  float values[4];
  for (int64_t i = 0; i < index; ++i) values[i] = static_cast<float>(i);
  double total = 0.0;
  for (const float value : values) total += static_cast<double>(value);
  return total;
}

int64_t add(int64_t a, int64_t b) { return a + b; }

// Every subrange writes `beyond` elements of the next one.
void write(Tensor x, int64_t beyond) {
  auto* data = static_cast<float*>(x.mutable_data_ptr());
  parallel_for(0, x.numel() - beyond, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end + beyond; ++i) data[i] = 1.0f;
  });
}

// Every subrange writes its own elements and reads `beyond` elements of the next one.
void read_beyond(Tensor x, int64_t beyond) {
  auto* data = static_cast<float*>(x.mutable_data_ptr());
  parallel_for(0, x.numel() - beyond, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[i] = data[i + beyond] + 1.0f;
  });
}

template <class F>
void share(int64_t begin, int64_t end, int64_t grain, int64_t threads, const F& f) {
  const auto body = [](const void* function, int64_t first, int64_t last) {
    (*static_cast<const F*>(function))(first, last);
  };
  cpu::run({begin, end, grain, threads, body, &f});
}

// Threads of the pool set the elements of x, and in a loop within that loop those of each row; the caller reads them.
int64_t shared_sum(Tensor x, int64_t grain, int64_t threads) {
  auto* data = static_cast<float*>(x.mutable_data_ptr());
  const int64_t rows = x.size(0), columns = x.size(1);
  share(0, rows, grain, threads, [&](int64_t begin, int64_t end) {
    STD_TORCH_CHECK(begin % grain == 0 && (end % grain == 0 || end == rows), "a subrange is no multiple of the grain");
    for (; begin < end; ++begin) {
      share(0, columns, 5, 2, [&, begin](int64_t first, int64_t last) {
        for (; first < last; ++first) data[begin * columns + first] += 1.0f;
      });
    }
  });
  return static_cast<int64_t>(std::accumulate(data, data + rows * columns, 0.0));
}

// How many iterations threads of the pool are given in all.
int64_t shared_size(int64_t size, int64_t threads) {
  std::atomic<int64_t> total{0};
  share(0, size, 1, threads, [&](int64_t begin, int64_t end) { total += end - begin; });
  return total;
}

// One of the iterations throws.
void shared_failure(int64_t size, int64_t threads, int64_t wrong) {
  share(0, size, 1, threads, [&](int64_t begin, int64_t end) {
    STD_TORCH_CHECK(wrong < begin || wrong >= end, "iteration ", wrong, " failed");
  });
}

// Threads of the pool write one counter, in turns only if `alone`.
int64_t shared_counter(int64_t size, bool alone) {
  int64_t counter = 0;
  share(0, size, 1, alone ? 1 : 4, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      ++counter;
      std::this_thread::sleep_for(std::chrono::milliseconds(alone ? 0 : 1));
    }
  });
  return counter;
}

}  // namespace

STABLE_TORCH_LIBRARY(resshift_fast_faults, library) {
  library.def("read(Tensor x, int index) -> float");
  library.def("read_scratch(int floats, int index) -> float");
  library.def("read_variable(int index) -> float");
  library.def("add(int a, int b) -> int");
  library.def("write(Tensor(a!) x, int beyond) -> ()");
  library.def("read_beyond(Tensor(a!) x, int beyond) -> ()");
  library.def("shared_sum(Tensor(a!) x, int grain, int threads) -> int");
  library.def("shared_size(int size, int threads) -> int");
  library.def("shared_failure(int size, int threads, int wrong) -> ()");
  library.def("shared_counter(int size, bool alone) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_faults, CompositeExplicitAutograd, library) {
  library.impl("read", TORCH_BOX(&read));
  library.impl("read_scratch", TORCH_BOX(&read_scratch));
  library.impl("read_variable", TORCH_BOX(&read_variable));
  library.impl("add", TORCH_BOX(&add));
  library.impl("write", TORCH_BOX(&write));
  library.impl("read_beyond", TORCH_BOX(&read_beyond));
  library.impl("shared_sum", TORCH_BOX(&shared_sum));
  library.impl("shared_size", TORCH_BOX(&shared_size));
  library.impl("shared_failure", TORCH_BOX(&shared_failure));
  library.impl("shared_counter", TORCH_BOX(&shared_counter));
}

}  // namespace resshift::faults
