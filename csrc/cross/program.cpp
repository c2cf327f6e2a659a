// Runs calls of the library's operators that come on standard input, and writes their results to standard output.
//
// All numbers are int64, little-endian. First it writes the schemas of its operators: their number, and each as a text,
// which is its length and its bytes. A call is
//
//   text name, number of threads, number of arguments, arguments, number of results, kind of the results
//
// where an argument is one of kNone; kNumber and 8 bytes, which are an integer, a float64 or a truth value; kTensor,
// dtype, dimensions, sizes, strides, bytes of its memory, and these; with kOptional added if the schema says so. The
// answer is 0 and the results, as arguments are, or 1 and a text, the error.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "libtorch.h"

namespace resshift::cross {
namespace {

enum Kind : std::int64_t { kNone, kNumber, kTensor, kOptional = 8 };

// The other side has ended if there is nothing to read.
void read(void* data, std::size_t bytes) {
  if (bytes && std::fread(data, bytes, 1, stdin) != 1) std::exit(0);
}

std::int64_t read_number() {
  std::int64_t value;
  read(&value, sizeof(value));
  return value;
}

std::string read_text() {
  std::string text(static_cast<std::size_t>(read_number()), '\0');
  read(text.data(), text.size());
  return text;
}

void write(const void* data, std::size_t bytes) { std::fwrite(data, 1, bytes, stdout); }

void write_number(std::int64_t value) { write(&value, sizeof(value)); }

void write_text(const std::string& text) {
  write_number(static_cast<std::int64_t>(text.size()));
  write(text.data(), text.size());
}

Array read_array() {
  Array array;
  array.dtype = static_cast<std::int32_t>(read_number());
  const auto dimensions = static_cast<std::size_t>(read_number());
  for (Sizes* const sizes : {&array.sizes, &array.strides}) {
    for (std::size_t i = 0; i < dimensions; ++i) sizes->push_back(read_number());
  }
  array.storage = std::make_shared<Storage>(static_cast<std::size_t>(read_number()));
  read(array.storage->data(), array.storage->bytes());
  return array;
}

StableIValue read_argument() {
  const std::int64_t kind = read_number();
  if (kind == kNone) return 0;
  const StableIValue value = (kind & kTensor) ? reinterpret_cast<StableIValue>(handle_of(read_array()))
                                              : static_cast<StableIValue>(read_number());
  return (kind & kOptional) ? reinterpret_cast<StableIValue>(new StableIValue(value)) : value;
}

void write_array(const Array& array) {
  write_number(array.dtype);
  write_number(static_cast<std::int64_t>(array.sizes.size()));
  for (const std::int64_t size : array.sizes) write_number(size);
  for (const std::int64_t stride : array.strides) write_number(stride);
  const std::size_t bytes = static_cast<std::size_t>(span(array)) * aoti_torch_dtype_element_size(array.dtype);
  write_number(static_cast<std::int64_t>(bytes));
  write(array.storage->data(), bytes);
}

// Results are tensors, or one number.
void write_results(const std::vector<StableIValue>& stack, std::int64_t results, bool numbers) {
  write_number(0);
  for (std::int64_t i = 0; i < results; ++i) {
    const StableIValue value = stack[static_cast<std::size_t>(i)];
    write_number(numbers ? kNumber : kTensor);
    if (numbers) {
      write_number(static_cast<std::int64_t>(value));
      continue;
    }
    const auto handle = reinterpret_cast<AtenTensorHandle>(value);
    write_array(array_of(handle));
    aoti_torch_delete_tensor_object(handle);
  }
}

void answer() {
  const std::string name = read_text();
  set_num_threads(static_cast<std::uint32_t>(read_number()));
  const std::int64_t arguments = read_number();
  std::vector<StableIValue> stack(static_cast<std::size_t>(arguments) + 8);
  for (std::int64_t i = 0; i < arguments; ++i) stack[static_cast<std::size_t>(i)] = read_argument();
  const std::int64_t results = read_number(), kind = read_number();
  try {
    registered().functions.at(name)(stack.data(), static_cast<std::uint64_t>(arguments),
                                    static_cast<std::uint64_t>(results));
    write_results(stack, results, kind == kNumber);
  } catch (const std::exception& error) {
    write_number(1);
    write_text(error.what());
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace resshift::cross

int main() {
  using namespace resshift::cross;
  write_number(static_cast<std::int64_t>(registered().schemas.size()));
  for (const std::string& schema : registered().schemas) write_text(schema);
  std::fflush(stdout);
  for (;;) answer();
}
