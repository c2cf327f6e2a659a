// A record of the loops that threads share, for models of processors with other numbers of cores.
#pragma once

#include <cstdint>
#include <vector>

namespace resshift::cpu {

// A loop, and the time of the processor that all of it took on the calling thread; 0 where it did not run.
struct RecordedLoop {
  std::int64_t iterations, grain, nanoseconds;
};

// While a thread has a recording, its loops are divided as if for `threads` threads and run on that thread alone; or,
// unless `runs`, not at all, which leaves results uninitialized.
struct Recording {
  std::int64_t threads;
  bool runs;
  std::vector<RecordedLoop> loops;
};

// The calling thread's recording; null, as a rule.
Recording* recording();

// Begin a recording on the calling thread, in place of the one it may have.
void begin_recording(std::int64_t threads, bool runs);

// Nanoseconds that the calling thread has had a processor, so that what other programs take is left out.
std::int64_t thread_nanoseconds();

// End it; returns its loops, in the order in which they began.
std::vector<RecordedLoop> end_recording();

}  // namespace resshift::cpu
