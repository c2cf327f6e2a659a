#include "workspace.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "recording.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace resshift::cpu {

#if defined(RSF_SANITIZED)

// Exactly the size asked for, never reused, and full of NaN, so that reads past its end or before the first write show.
// There is no pool: its lock would order the threads that take it and hide races between them.
Workspace::Workspace(int64_t floats) : data_(nullptr), bytes_(static_cast<std::size_t>(floats) * sizeof(float)) {
  void* data = nullptr;
  STD_TORCH_CHECK(!posix_memalign(&data, 64, bytes_), "no memory is left for ", bytes_, " bytes of scratch");
  std::memset(data, 0xff, bytes_);
  data_ = static_cast<float*>(data);
}

Workspace::~Workspace() { std::free(data_); }

void advise_huge_pages(void*, std::size_t) {}

#else

namespace {

constexpr std::size_t kPage = std::size_t{1} << 21;  // a huge page
constexpr std::size_t kKept = 16;                    // buffers; further threads allocate anew

struct Buffer {
  float* data;
  std::size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Buffer> buffers;
};

// Never destroyed: a thread may still run a kernel while the process ends.
Pool& pool() {
  static Pool& instance = *new Pool;
  return instance;
}

Buffer allocate(std::size_t bytes) {
  void* data = std::aligned_alloc(kPage, bytes);
  STD_TORCH_CHECK(data, "no memory is left for ", bytes, " bytes of scratch");
  advise_huge_pages(data, bytes);
  return {static_cast<float*>(data), bytes};
}

}  // namespace

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + bytes) / kPage * kPage;
  // The result is ignored: without huge pages the memory works as well.
  if (end >= begin + 4 * kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Workspace::Workspace(int64_t floats) : data_(nullptr), bytes_(0) {
  if (const Recording* const recorded = recording(); recorded && !recorded->runs) return;
  const std::size_t needed = (static_cast<std::size_t>(floats) * sizeof(float) + kPage - 1) / kPage * kPage;
  Buffer found{nullptr, 0};
  {
    std::lock_guard<std::mutex> lock(pool().mutex);
    auto& buffers = pool().buffers;
    std::size_t best = buffers.size();
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const bool fits = buffers[i].bytes >= needed;
      if (fits && (best == buffers.size() || buffers[i].bytes < buffers[best].bytes)) best = i;
    }
    // Free one that is too small: the pool must not grow by every size that was ever asked for.
    if (best == buffers.size() && !buffers.empty()) {
      std::free(buffers.back().data);
      buffers.pop_back();
    } else if (best < buffers.size()) {
      found = buffers[best];
      buffers.erase(buffers.begin() + static_cast<std::ptrdiff_t>(best));
    }
  }
  if (!found.data) found = allocate(needed);
  data_ = found.data;
  bytes_ = found.bytes;
}

Workspace::~Workspace() {
  if (!data_) return;
  std::lock_guard<std::mutex> lock(pool().mutex);
  if (pool().buffers.size() < kKept) {
    pool().buffers.push_back({data_, bytes_});
  } else {
    std::free(data_);
  }
}

#endif

}  // namespace resshift::cpu
