// Loops whose iterations threads share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "recording.h"

#if defined(RSF_SANITIZED)
#include <algorithm>
#include <thread>
#include <vector>
#else
#include "thread_pool.h"
#endif

namespace resshift::cpu {

// For how many threads kernels divide their work.
inline std::int64_t get_num_threads() {
  const Recording* const recorded = recording();
  return recorded ? recorded->threads : torch::stable::get_num_threads();
}

// Call f(begin, end) for subranges that cover a range, multiples of the grain but for the last, and wait for all.
#if !defined(RSF_SANITIZED)
template <class F>
void share(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const auto body = [](const void* function, int64_t first, int64_t last) {
    (*static_cast<const F*>(function))(first, last);
  };
  const Loop loop{begin, end, grain, get_num_threads(), body, &f};
  recording() ? run_alone(loop) : run(loop);
}
#else
// The tests' calls are too small for several threads, and what a thread takes next it does after what it took before.
// Here every subrange, of any size, has a thread of its own, and none is ordered before another: two threads that use
// one address are seen.
template <class F>
void share(int64_t begin, int64_t end, int64_t, const F& f) {
  const int64_t count = end - begin, pieces = std::min<int64_t>(count, 5);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < pieces; ++i) {
    threads.emplace_back([=, &f] { f(begin + count * i / pieces, begin + count * (i + 1) / pieces); });
  }
  for (std::thread& thread : threads) thread.join();
}
#endif

// The same, or what the thread's recording says.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  Recording* const recorded = recording();
  if (!recorded) return share(begin, end, grain, f);
  recorded->loops.push_back({end - begin, grain, 0});
  if (!recorded->runs) return;
  const std::int64_t began = thread_nanoseconds();
  share(begin, end, grain, f);
  recorded->loops.back().nanoseconds = thread_nanoseconds() - began;
}

}  // namespace resshift::cpu
