#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "../common/integers.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace resshift::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// How long a thread looks for work before it sleeps: about as long as waking it takes. On a busy machine that is time
// taken from who has work. (benchmarks/busy.py: no slower alone than with 200 µs, and faster beside other programs.)
constexpr std::chrono::microseconds kSpin{50};

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  // `yield` does nothing on most of these processors; this waits for about as long as x86's pause.
  __asm__ volatile("isb" ::: "memory");
#else
  std::this_thread::yield();
#endif
}

// Wait until a condition holds, but not longer than kSpin; returns whether it does.
template <class Condition>
bool spin_until(const Condition& holds) {
  const Clock::time_point stop = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (holds()) return true;
      pause();
    }
  } while (Clock::now() < stop);
  return holds();
}

constexpr std::int64_t kMostSegments = 64;

// A loop while it runs. It lives on its caller's stack: who takes part has entered before the caller closes it.
//
// Every thread begins with a segment of its own, the same one in every loop, so that it finds in its caches what it
// wrote in the loop before; then it takes from the ends of the others'.
class Shared {
 public:
  Shared(const Loop& loop, std::int64_t threads)
      : loop_(loop), segments_(std::min(threads, kMostSegments)), grain_(loop.grain) {
    const std::int64_t size = loop.end - loop.begin;
    grain_ *= divide_up(divide_up(size, grain_), std::int64_t{UINT32_MAX});  // so that pieces are counted in 32 bits
    const std::int64_t pieces = divide_up(size, grain_);
    untaken_.store(pieces, std::memory_order_relaxed);
    for (std::int64_t i = 0; i < segments_; ++i) {
      const Span span{pieces * i / segments_, pieces * (i + 1) / segments_};
      spans_[i].value.store(packed(span), std::memory_order_relaxed);
    }
  }

  // Take pieces until none is left. The first ones are large, as each costs something, and the last ones small, so that
  // threads end together.
  void work(std::int64_t thread) {
    Span span;
    while (take(thread % segments_, span)) {
      try {
        const std::int64_t first = loop_.begin + span.first * grain_, last = loop_.begin + span.last * grain_;
        loop_.body(loop_.function, first, std::min(last, loop_.end));
      } catch (...) {
        for (std::int64_t i = 0; i < segments_; ++i) spans_[i].value.store(0, std::memory_order_relaxed);
        untaken_.store(0, std::memory_order_relaxed);
        const std::lock_guard<std::mutex> lock(failing_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }

  bool exhausted() const { return untaken_.load(std::memory_order_relaxed) <= 0; }

  void rethrow() {
    if (failure_) std::rethrow_exception(failure_);
  }

  std::int64_t helpers_wanted = 0;       // protected by the pool's mutex
  std::atomic<std::int64_t> helpers{0};  // that have entered and not left

 private:
  struct Span {
    std::int64_t first, last;  // pieces
  };
  struct alignas(64) Packed {
    std::atomic<std::uint64_t> value;
  };

  static std::uint64_t packed(Span span) {
    return static_cast<std::uint64_t>(span.first) << 32 | static_cast<std::uint64_t>(span.last);
  }

  // Half of what is left of the thread's own segment, from its beginning, else of another, from its end.
  bool take(std::int64_t own, Span& span) {
    for (std::int64_t i = 0; i < segments_; ++i) {
      std::atomic<std::uint64_t>& value = spans_[(own + i) % segments_].value;
      std::uint64_t seen = value.load(std::memory_order_relaxed);
      for (;;) {
        const auto first = static_cast<std::int64_t>(seen >> 32), last = static_cast<std::int64_t>(seen & UINT32_MAX);
        if (first >= last) break;
        const std::int64_t share = (last - first + 1) / 2;
        span = i ? Span{last - share, last} : Span{first, first + share};
        const Span left = i ? Span{first, last - share} : Span{first + share, last};
        if (value.compare_exchange_weak(seen, packed(left), std::memory_order_relaxed)) {
          untaken_.fetch_sub(share, std::memory_order_relaxed);
          return true;
        }
      }
    }
    return false;
  }

  const Loop& loop_;
  const std::int64_t segments_;
  std::int64_t grain_;
  std::atomic<std::int64_t> untaken_{0};  // pieces
  Packed spans_[kMostSegments];
  std::mutex failing_;
  std::exception_ptr failure_;
};

class Pool {
 public:
  void run(const Loop& loop, std::int64_t threads) {
    Shared shared(loop, threads);
    open(shared, threads - 1);
    shared.work(0);
    close(shared);
    shared.rethrow();
  }

 private:
  // Offer a loop to other threads, and start those that are missing.
  void open(Shared& shared, std::int64_t helpers) {
    bool wake;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      shared.helpers_wanted = helpers;
      open_.push_back(&shared);
      opened_.fetch_add(1, std::memory_order_release);
      wake = asleep_ > 0;
      for (; threads_ < helpers && start_thread(); ++threads_) {
      }
    }
    for (; wake && helpers > 1; --helpers) work_.notify_one();
    if (wake) work_.notify_one();
  }

  // Where the system has no more threads, the others do the work.
  bool start_thread() {
    try {
      std::thread([this, number = threads_ + 1] { help(number); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    }
  }

  // Let no other thread enter, and wait for those that have.
  void close(Shared& shared) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      open_.erase(std::find(open_.begin(), open_.end(), &shared));
    }
    const auto left = [&] { return shared.helpers.load(std::memory_order_acquire) == 0; };
    if (spin_until(left)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, left);
  }

  // A helper's life: enter a loop that wants more threads, take part, and look for the next. Helpers are numbered
  // from 1.
  [[noreturn]] void help(std::int64_t number) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (Shared* shared = wanted()) {
        --shared->helpers_wanted;
        shared->helpers.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        shared->work(number);
        lock.lock();
        // Under the mutex: the caller may not have begun to wait.
        if (shared->helpers.fetch_sub(1, std::memory_order_release) == 1) done_.notify_all();
        continue;
      }
      const std::uint64_t seen = opened_.load(std::memory_order_relaxed);
      const auto more = [&] { return opened_.load(std::memory_order_acquire) != seen; };
      lock.unlock();
      const bool found = spin_until(more);
      lock.lock();
      if (found || more()) continue;
      ++asleep_;
      work_.wait(lock, more);
      --asleep_;
    }
  }

  Shared* wanted() const {
    for (Shared* shared : open_) {
      if (shared->helpers_wanted > 0 && !shared->exhausted()) return shared;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::vector<Shared*> open_;
  std::atomic<std::uint64_t> opened_{0};  // how many loops have been offered
  std::int64_t threads_ = 0, asleep_ = 0;
};

// Never destroyed: its threads may look for work while the process ends.
Pool*& instance() {
  static Pool* pool = [] {
#if defined(__unix__) || defined(__APPLE__)
    // A forked process has none of the threads, and the mutex may be held by one of them.
    pthread_atfork(nullptr, nullptr, [] { instance() = new Pool; });
#endif
    return new Pool;
  }();
  return pool;
}

}  // namespace

void run(const Loop& loop) {
  const std::int64_t size = loop.end - loop.begin;
  if (size <= 0) return;
  const std::int64_t threads = std::min(loop.threads, divide_up(size, loop.grain));
  if (threads <= 1) return loop.body(loop.function, loop.begin, loop.end);
  instance()->run(loop, threads);
}

void run_alone(const Loop& loop) {
  Shared shared(loop, loop.threads);
  shared.work(0);
  shared.rethrow();
}

}  // namespace resshift::cpu
