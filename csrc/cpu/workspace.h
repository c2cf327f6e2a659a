// Scratch memory that is kept between calls: the page faults of fresh memory cost more than the work done in it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace resshift::cpu {

// Uninitialized floats, aligned to pages and returned to the pool at the end of the scope. Any thread may create one.
class Workspace {
 public:
  explicit Workspace(int64_t floats);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* data() const { return data_; }

 private:
  float* data_;
  std::size_t bytes_;
};

// Ask the system to back a large tensor, not yet written, with huge pages: a new image of 32 MiB is fresh memory every
// time, and with pages of 4 KiB its page faults take a third of the time of the convolution that writes it.
void advise_huge_pages(void* data, std::size_t bytes);

}  // namespace resshift::cpu
