#include "emulator.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulation {
namespace {

enum class State { kReady, kAtBarrier, kInWarpOperation, kFinished };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Thread {
  Dim3 index;
  unsigned linear = 0;
  State state = State::kReady;
  Fiber fiber;
  std::string place;  // of the barrier, or the kind of the warp operation
  unsigned mask = 0;
  void* slot = nullptr;
  std::deque<std::vector<Copy>> copies{1};  // groups; the last one is open
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

struct Block {
  Dim3 index, size, grid;
  std::vector<Thread> threads;
  Thread* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::map<const void*, Memory> shared;
  Memory dynamic;
  std::exception_ptr error;
};

thread_local Block* block = nullptr;
thread_local Order order = Order::kAscending;

Memory poisoned(std::size_t bytes) {
  // Not rounded up, so that the byte after the last one is out of bounds. All bits set is NaN in every format.
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, std::max<std::size_t>(bytes, 1))) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return Memory(memory);
}

std::string name(const Thread& thread) {
  std::ostringstream text;
  text << "thread (" << thread.index.x << ", " << thread.index.y << ", " << thread.index.z << ")";
  return text.str();
}

[[noreturn]] void fail(const std::string& what) {
  std::ostringstream text;
  text << "block (" << block->index.x << ", " << block->index.y << ", " << block->index.z << "): " << what;
  throw std::runtime_error(text.str());
}

void run_thread() {
  try {
    (*block->kernel)();
  } catch (...) {
    if (!block->error) block->error = std::current_exception();
  }
  block->running->state = State::kFinished;
}

void wait(State state, const std::string& place) {
  Thread& thread = *block->running;
  thread.state = state;
  thread.place = place;
  thread.fiber.leave();
}

// All threads have run as far as they can: let them pass the barrier, or fail and say which thread waits for which.
void open_barrier() {
  const Thread* waiting = nullptr;
  const Thread* finished = nullptr;
  for (const Thread& thread : block->threads) {
    if (thread.state == State::kInWarpOperation) {
      fail(name(thread) + " waits in " + thread.place + " for lanes of its mask that do not come");
    }
    (thread.state == State::kFinished ? finished : waiting) = &thread;
  }
  if (finished && waiting) {
    fail(name(*waiting) + " waits at the barrier of " + waiting->place + ", but " + name(*finished) + " has exited");
  }
  for (Thread& thread : block->threads) {
    if (thread.place != waiting->place) {
      fail("threads wait at different barriers: " + waiting->place + " and " + thread.place);
    }
    thread.state = State::kReady;
  }
}

std::vector<unsigned> sequence(unsigned count, std::mt19937& random) {
  std::vector<unsigned> indices(count);
  std::iota(indices.begin(), indices.end(), 0u);
  if (order == Order::kDescending) std::reverse(indices.begin(), indices.end());
  if (order == Order::kShuffled) std::shuffle(indices.begin(), indices.end(), random);
  return indices;
}

bool all_finished() {
  return std::all_of(block->threads.begin(), block->threads.end(),
                     [](const Thread& thread) { return thread.state == State::kFinished; });
}

// Run each thread of a range that is ready, once; returns whether there was one.
bool run_ready(unsigned first, unsigned count, std::mt19937& random) {
  bool ran = false;
  for (unsigned i : sequence(count, random)) {
    Thread& thread = block->threads[first + i];
    if (thread.state != State::kReady) continue;
    ran = true;
    block->running = &thread;
    thread.fiber.enter();
    if (block->error) std::rethrow_exception(block->error);
  }
  return ran;
}

void run_block(std::mt19937& random) {
  const auto num_threads = static_cast<unsigned>(block->threads.size());
  for (Thread& thread : block->threads) {
    thread.state = State::kReady;
    thread.copies.assign(1, {});
    thread.fiber.start(run_thread);
  }
  while (!all_finished()) {
    bool ran = false;
    if (order == Order::kShuffled) {
      ran = run_ready(0, num_threads, random);
    } else {
      // Each warp as far as it can run before the next one: a missing barrier shows.
      for (unsigned warp : sequence((num_threads + kWarpSize - 1) / kWarpSize, random)) {
        const unsigned first = warp * kWarpSize, count = std::min(kWarpSize, num_threads - first);
        while (run_ready(first, count, random)) ran = true;
      }
    }
    if (!ran) open_barrier();
  }
}

}  // namespace

void set_order(Order chosen) { order = chosen; }

void run_grid(Dim3 grid, Dim3 size, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned num_threads = size.x * size.y * size.z;
  if (num_threads == 0 || num_threads > 1024) throw std::runtime_error("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("the grid is empty or beyond the limits 2147483647, 65535, 65535");
  }
  if (shared_bytes > 99 * 1024) throw std::runtime_error("more shared memory than a block of sm_86, 89 and 120 has");
  Block current;
  current.size = size;
  current.grid = grid;
  current.kernel = &kernel;
  current.threads.resize(num_threads);
  for (unsigned i = 0; i < num_threads; ++i) {
    current.threads[i].index = Dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    current.threads[i].linear = i;
  }
  struct Restore {
    ~Restore() { block = nullptr; }
  } restore;
  block = &current;
  std::mt19937 random(7);
  for (unsigned i : sequence(grid.x * grid.y * grid.z, random)) {
    current.index = Dim3(i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y));
    current.shared.clear();
    current.dynamic = poisoned(shared_bytes);
    run_block(random);
  }
}

const Dim3& thread_index() { return block->running->index; }
const Dim3& block_index() { return block->index; }
const Dim3& block_size() { return block->size; }
const Dim3& grid_size() { return block->grid; }
unsigned lane() { return block->running->linear % kWarpSize; }

void sync_block(const char* file, int line) { wait(State::kAtBarrier, std::string(file) + ":" + std::to_string(line)); }

void* static_shared(const void* declaration, std::size_t bytes) {
  Memory& memory = block->shared[declaration];
  if (!memory) memory = poisoned(bytes);
  return memory.get();
}

void* dynamic_shared() { return block->dynamic.get(); }

void warp_operation(const char* kind, unsigned mask, void* slot, WarpOperation operate) {
  Thread& self = *block->running;
  const unsigned first = self.linear - self.linear % kWarpSize;
  if (!(mask >> lane() & 1)) fail(name(self) + " calls " + kind + " with a lane mask that leaves itself out");
  self.mask = mask;
  self.slot = slot;
  self.place = kind;
  void* slots[kWarpSize] = {};
  bool complete = true;
  for (unsigned i = 0; i < kWarpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    if (first + i >= block->threads.size()) fail(std::string(kind) + " names a lane that the block does not have");
    const Thread& other = block->threads[first + i];
    slots[i] = other.slot;
    if (&other == &self) continue;
    if (other.state == State::kFinished) fail(std::string(kind) + " waits for " + name(other) + ", which has exited");
    if (other.state == State::kInWarpOperation && (other.mask != mask || other.place != kind)) {
      fail(name(self) + " calls " + kind + " while " + name(other) + " is in " + other.place +
           (other.mask != mask ? " with another lane mask" : ""));
    }
    complete = complete && other.state == State::kInWarpOperation;
  }
  if (!complete) return wait(State::kInWarpOperation, kind);
  operate(slots);
  for (unsigned i = 0; i < kWarpSize; ++i) {
    if (mask >> i & 1) block->threads[first + i].state = State::kReady;
  }
}

void copy_later(void* to, const void* from, std::size_t bytes) {
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % bytes) {
    fail("an asynchronous copy is not aligned");
  }
  // At once in one of the orders: so a copy that overwrites values that others still read shows, as in the other orders
  // a copy that is read too early.
  if (order == Order::kDescending) std::memcpy(to, from, bytes);
  block->running->copies.back().push_back({to, from, bytes});
}

void commit_copies() { block->running->copies.emplace_back(); }

void wait_copies(int groups_left) {
  auto& copies = block->running->copies;
  while (static_cast<int>(copies.size()) - 1 > groups_left) {
    for (const Copy& copy : copies.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    copies.pop_front();
  }
}

}  // namespace emulation
