#include "recording.h"

#include <chrono>
#include <ctime>
#include <memory>
#include <utility>

namespace resshift::cpu {
namespace {

std::unique_ptr<Recording>& current() {
  thread_local std::unique_ptr<Recording> instance;
  return instance;
}

}  // namespace

Recording* recording() { return current().get(); }

void begin_recording(std::int64_t threads, bool runs) {
  current() = std::make_unique<Recording>(Recording{threads, runs, {}});
}

std::int64_t thread_nanoseconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
#else
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

std::vector<RecordedLoop> end_recording() {
  const std::unique_ptr<Recording> ended = std::move(current());
  return ended ? std::move(ended->loops) : std::vector<RecordedLoop>{};
}

}  // namespace resshift::cpu
