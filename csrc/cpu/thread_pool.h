// Threads that share the iterations of a loop as they become free.
//
// A thread that is late, because another program has its processor, gets fewer iterations, and one that never starts is
// not waited for: so a loop takes no longer than with the threads that do run. (OpenMP deals out the iterations before,
// and waits for all its threads at the end.) One that is in time begins where it began in the loop before.
#pragma once

#include <cstdint>

namespace resshift::cpu {

// Calls body(function, first, last) for subranges that cover [begin, end).
struct Loop {
  std::int64_t begin, end;
  std::int64_t grain;    // subranges are multiples of it, but for the last
  std::int64_t threads;  // at most, with the caller's
  void (*body)(const void* function, std::int64_t first, std::int64_t last);
  const void* function;
};

// Run a loop on the caller's thread and on others, and wait until all of it is done. Any thread may call it, several at
// once, also from within a loop. Rethrows what a subrange throws first; others that had not begun by then are left out.
void run(const Loop& loop);

// Run the same subranges on the caller's thread alone.
void run_alone(const Loop& loop);

}  // namespace resshift::cpu
