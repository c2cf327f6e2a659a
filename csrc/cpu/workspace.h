// Scratch memory that is kept from call to call: fresh pages cost more than what is computed on them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace resshift::bindings {

// Floats that are uninitialized, aligned to pages, and given back at the end of the scope; any thread may ask for some.
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

// Have the system back a large tensor's memory, not yet written, with huge pages: an image of 32 MiB is fresh memory
// every time, and to be given it in pages of 4 KiB takes a third of the time of the convolution that writes it.
void advise_huge_pages(void* data, std::size_t bytes);

}  // namespace resshift::bindings
