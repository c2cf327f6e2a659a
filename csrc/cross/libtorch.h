// A small libtorch, with as much of the stable ABI as the library for CPUs uses: tensors in memory of their own.
//
// It lets that library run as a program without torch, under an emulator of another processor. Memory that was not
// written is NaN, and behind every tensor is a page that cannot be accessed: to read or write past the end of a tensor
// ends the program.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace resshift::cross {

// Bytes that end at the page that cannot be accessed.
class Storage {
 public:
  explicit Storage(std::size_t bytes);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  char* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_, mapped_;
  char *begin_, *data_;
};

using Sizes = std::vector<std::int64_t>;

// What an AtenTensorHandle points to. Its first element is the first of its storage.
struct Array {
  std::shared_ptr<Storage> storage;
  std::int32_t dtype;  // of torch's
  Sizes sizes, strides;
};

// A new handle, which aoti_torch_delete_tensor_object deletes.
AtenTensorHandle handle_of(Array array);
Array& array_of(AtenTensorHandle handle);

// From the first element to the last, in elements.
std::int64_t span(const Array& array);

using Boxed = void (*)(StableIValue*, std::uint64_t, std::uint64_t);

// What the library has registered: schemas, and implementations by name.
struct Registered {
  std::vector<std::string> schemas;
  std::map<std::string, Boxed> functions;
};
Registered& registered();

// Of the loops that follow.
void set_num_threads(std::uint32_t threads);

}  // namespace resshift::cross
