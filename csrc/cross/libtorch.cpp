#include "libtorch.h"

#include <sys/mman.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>

namespace resshift::cross {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

std::uint32_t num_threads = 1;

std::size_t size_of(std::int32_t dtype) {
  switch (static_cast<ScalarType>(dtype)) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Double:
    case ScalarType::Long:
      return 8;
    default:
      throw std::runtime_error("a dtype that no kernel for CPUs takes: " + std::to_string(dtype));
  }
}

std::int64_t product(const Sizes& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
}

// Strides without gaps, with the dimensions of `order` from the innermost to the outermost.
Sizes dense_strides(const Sizes& sizes, const std::vector<std::size_t>& order) {
  Sizes strides(sizes.size());
  std::int64_t stride = 1;
  for (const std::size_t dimension : order) {
    strides[dimension] = stride;
    stride *= std::max<std::int64_t>(sizes[dimension], 1);
  }
  return strides;
}

std::vector<std::size_t> order_of(const Sizes& sizes, MemoryFormat format) {
  if (format == MemoryFormat::ChannelsLast && sizes.size() == 4) return {1, 3, 2, 0};
  std::vector<std::size_t> order(sizes.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
  return order;
}

// Whether the strides are those, but for dimensions of one element.
bool lies_as(const Array& array, const Sizes& strides) {
  for (std::size_t i = 0; i < strides.size(); ++i) {
    if (array.sizes[i] != 1 && array.strides[i] != strides[i]) return false;
  }
  return true;
}

Array empty(const Sizes& sizes, std::int32_t dtype, const Sizes& strides) {
  return {std::make_shared<Storage>(static_cast<std::size_t>(product(sizes)) * size_of(dtype)), dtype, sizes, strides};
}

void copy(const Array& to, const Array& from) {
  if (to.sizes != from.sizes || to.dtype != from.dtype) throw std::runtime_error("a copy changes the shape or dtype");
  const std::size_t bytes = size_of(to.dtype);
  for (std::int64_t i = 0, count = product(to.sizes); i < count; ++i) {
    std::int64_t rest = i, target = 0, source = 0;
    for (std::size_t j = to.sizes.size(); j-- > 0; rest /= to.sizes[j]) {
      target += rest % to.sizes[j] * to.strides[j];
      source += rest % to.sizes[j] * from.strides[j];
    }
    std::memcpy(to.storage->data() + static_cast<std::size_t>(target) * bytes,
                from.storage->data() + static_cast<std::size_t>(source) * bytes, bytes);
  }
}

Array contiguous(const Array& array, MemoryFormat format) {
  const Sizes strides = dense_strides(array.sizes, order_of(array.sizes, format));
  if (lies_as(array, strides)) return array;
  Array result = empty(array.sizes, array.dtype, strides);
  copy(result, array);
  return result;
}

// As torch preserves strides: those of the tensor if it has no gaps, else dense ones of the same order.
Array empty_like(const Array& array) {
  std::vector<std::size_t> order = order_of(array.sizes, MemoryFormat::Contiguous);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return array.strides[i] < array.strides[j]; });
  const Sizes strides = dense_strides(array.sizes, order);
  return empty(array.sizes, array.dtype, lies_as(array, strides) ? array.strides : strides);
}

// The value of an optional argument, which the callee deletes.
template <class T>
T value_or(StableIValue value, T otherwise) {
  if (!value) return otherwise;
  const std::unique_ptr<StableIValue> owned(reinterpret_cast<StableIValue*>(value));
  return static_cast<T>(*owned);
}

Sizes take_list(StableIValue value) {
  const std::unique_ptr<Sizes> owned(reinterpret_cast<Sizes*>(value));
  return *owned;
}

Array take(StableIValue value) {
  const auto handle = reinterpret_cast<AtenTensorHandle>(value);
  Array array = array_of(handle);
  aoti_torch_delete_tensor_object(handle);
  return array;
}

// Calls one of torch's operators: arguments are taken from the stack, and the result is its first value.
void call(const std::string& name, StableIValue* stack) {
  const std::int32_t contiguous_format = static_cast<std::int32_t>(MemoryFormat::Contiguous);
  Array result;
  if (name == "aten::contiguous") {
    result = contiguous(take(stack[0]), static_cast<MemoryFormat>(static_cast<std::int32_t>(stack[1])));
  } else if (name == "aten::copy_") {
    result = take(stack[0]);
    copy(result, take(stack[1]));
  } else if (name == "aten::empty_like") {
    result = empty_like(take(stack[0]));
  } else if (name == "aten::empty") {
    const Sizes sizes = take_list(stack[0]);
    const auto dtype = value_or(stack[1], static_cast<std::int32_t>(ScalarType::Float));
    value_or(stack[3], std::int64_t{0});  // the device, which is this one
    const auto format = static_cast<MemoryFormat>(value_or(stack[5], contiguous_format));
    result = empty(sizes, dtype, dense_strides(sizes, order_of(sizes, format)));
  } else if (name == "aten::new_empty") {
    const Array like = take(stack[0]);
    const Sizes sizes = take_list(stack[1]);
    result =
        empty(sizes, value_or(stack[2], like.dtype), dense_strides(sizes, order_of(sizes, MemoryFormat::Contiguous)));
  } else {
    throw std::runtime_error("csrc/cross/libtorch.cpp has no operator " + name);
  }
  stack[0] = reinterpret_cast<StableIValue>(handle_of(std::move(result)));
}

}  // namespace

Storage::Storage(std::size_t bytes) : bytes_(bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t whole = (bytes + page - 1) / page * page;
  mapped_ = whole + page;
  void* const begin = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED || mprotect(static_cast<char*>(begin) + whole, page, PROT_NONE)) {
    throw std::runtime_error("no memory is left for " + std::to_string(bytes) + " bytes");
  }
  begin_ = static_cast<char*>(begin);
  data_ = begin_ + whole - bytes;
  std::memset(begin_, 0xff, whole);
}

Storage::~Storage() { munmap(begin_, mapped_); }

AtenTensorHandle handle_of(Array array) { return reinterpret_cast<AtenTensorHandle>(new Array(std::move(array))); }
Array& array_of(AtenTensorHandle handle) { return *reinterpret_cast<Array*>(handle); }

std::int64_t span(const Array& array) {
  std::int64_t end = 1;
  for (std::size_t i = 0; i < array.sizes.size(); ++i) {
    if (array.sizes[i] == 0) return 0;
    end += (array.sizes[i] - 1) * array.strides[i];
  }
  return end;
}

// Never destroyed: libraries register themselves before main begins.
Registered& registered() {
  static Registered& instance = *new Registered;
  return instance;
}

void set_num_threads(std::uint32_t threads) { num_threads = threads; }

}  // namespace resshift::cross

// The functions of the stable ABI. Exceptions take the place of error codes: no C code lies between here and the
// library.
using resshift::cross::array_of;
using torch::headeronly::DeviceType;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

extern "C" {

#define RSF_NUMBER(name, value) \
  std::int32_t name() { return static_cast<std::int32_t>(value); }
RSF_NUMBER(aoti_torch_dtype_uint8, ScalarType::Byte)
RSF_NUMBER(aoti_torch_dtype_int8, ScalarType::Char)
RSF_NUMBER(aoti_torch_dtype_int16, ScalarType::Short)
RSF_NUMBER(aoti_torch_dtype_int32, ScalarType::Int)
RSF_NUMBER(aoti_torch_dtype_int64, ScalarType::Long)
RSF_NUMBER(aoti_torch_dtype_uint16, ScalarType::UInt16)
RSF_NUMBER(aoti_torch_dtype_uint32, ScalarType::UInt32)
RSF_NUMBER(aoti_torch_dtype_uint64, ScalarType::UInt64)
RSF_NUMBER(aoti_torch_dtype_float16, ScalarType::Half)
RSF_NUMBER(aoti_torch_dtype_float32, ScalarType::Float)
RSF_NUMBER(aoti_torch_dtype_float64, ScalarType::Double)
RSF_NUMBER(aoti_torch_dtype_bfloat16, ScalarType::BFloat16)
RSF_NUMBER(aoti_torch_dtype_complex32, ScalarType::ComplexHalf)
RSF_NUMBER(aoti_torch_dtype_complex64, ScalarType::ComplexFloat)
RSF_NUMBER(aoti_torch_dtype_complex128, ScalarType::ComplexDouble)
RSF_NUMBER(aoti_torch_dtype_bool, ScalarType::Bool)
RSF_NUMBER(aoti_torch_dtype_float8_e5m2, ScalarType::Float8_e5m2)
RSF_NUMBER(aoti_torch_dtype_float8_e4m3fn, ScalarType::Float8_e4m3fn)
RSF_NUMBER(aoti_torch_dtype_float8_e5m2fnuz, ScalarType::Float8_e5m2fnuz)
RSF_NUMBER(aoti_torch_dtype_float8_e4m3fnuz, ScalarType::Float8_e4m3fnuz)
RSF_NUMBER(aoti_torch_memory_format_contiguous_format, MemoryFormat::Contiguous)
RSF_NUMBER(aoti_torch_memory_format_preserve_format, MemoryFormat::Preserve)
RSF_NUMBER(aoti_torch_memory_format_channels_last, MemoryFormat::ChannelsLast)
RSF_NUMBER(aoti_torch_memory_format_channels_last_3d, MemoryFormat::ChannelsLast3d)
RSF_NUMBER(aoti_torch_device_type_cpu, DeviceType::CPU)
RSF_NUMBER(aoti_torch_device_type_cuda, DeviceType::CUDA)
RSF_NUMBER(aoti_torch_device_type_meta, DeviceType::Meta)
RSF_NUMBER(aoti_torch_device_type_xpu, DeviceType::XPU)
RSF_NUMBER(aoti_torch_device_type_mps, DeviceType::MPS)
RSF_NUMBER(aoti_torch_device_type_privateuse1, DeviceType::PrivateUse1)
// Numbers of layouts pass through here, and none is looked at.
RSF_NUMBER(aoti_torch_layout_strided, 0)
RSF_NUMBER(aoti_torch_layout_sparse_coo, 1)
RSF_NUMBER(aoti_torch_layout_sparse_csr, 2)
RSF_NUMBER(aoti_torch_layout__mkldnn, 3)
RSF_NUMBER(aoti_torch_layout_sparse_csc, 4)
RSF_NUMBER(aoti_torch_layout_sparse_bsr, 5)
RSF_NUMBER(aoti_torch_layout_sparse_bsc, 6)
RSF_NUMBER(aoti_torch_layout_jagged, 7)
#undef RSF_NUMBER

std::uint64_t aoti_torch_abi_version() { return TORCH_TARGET_VERSION; }
std::size_t aoti_torch_dtype_element_size(std::int32_t dtype) { return resshift::cross::size_of(dtype); }

// Answers with a value that is returned through a pointer.
#define RSF_ANSWER(name, type, value)                                        \
  AOTITorchError name(AtenTensorHandle tensor, type* result) {               \
    [[maybe_unused]] const resshift::cross::Array& array = array_of(tensor); \
    *result = value;                                                         \
    return AOTI_TORCH_SUCCESS;                                               \
  }
RSF_ANSWER(aoti_torch_get_dim, std::int64_t, static_cast<std::int64_t>(array.sizes.size()))
RSF_ANSWER(aoti_torch_get_numel, std::int64_t, resshift::cross::product(array.sizes))
RSF_ANSWER(aoti_torch_get_sizes, std::int64_t*, const_cast<std::int64_t*>(array.sizes.data()))
RSF_ANSWER(aoti_torch_get_dtype, std::int32_t, array.dtype)
RSF_ANSWER(aoti_torch_get_device_type, std::int32_t, aoti_torch_device_type_cpu())
RSF_ANSWER(aoti_torch_get_device_index, std::int32_t, -1)
RSF_ANSWER(aoti_torch_get_storage_offset, std::int64_t, 0)
RSF_ANSWER(aoti_torch_get_storage_size, std::int64_t, static_cast<std::int64_t>(array.storage->bytes()))
RSF_ANSWER(torch_get_mutable_data_ptr, void*, array.storage->data())
RSF_ANSWER(torch_get_const_data_ptr, const void*, array.storage->data())
RSF_ANSWER(aoti_torch_is_contiguous, bool,
           resshift::cross::lies_as(
               array, resshift::cross::dense_strides(array.sizes,
                                                     resshift::cross::order_of(array.sizes, MemoryFormat::Contiguous))))
RSF_ANSWER(aoti_torch_new_tensor_handle, AtenTensorHandle, resshift::cross::handle_of(array))
#undef RSF_ANSWER

AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, std::int64_t dimension, std::int64_t* result) {
  *result = array_of(tensor).sizes.at(static_cast<std::size_t>(dimension));
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, std::int64_t dimension, std::int64_t* result) {
  *result = array_of(tensor).strides.at(static_cast<std::size_t>(dimension));
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  delete &array_of(tensor);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_new_list_reserve_size(std::size_t size, StableListHandle* result) {
  auto* const list = new resshift::cross::Sizes;
  list->reserve(size);
  *result = reinterpret_cast<StableListHandle>(list);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_list_push_back(StableListHandle list, StableIValue element) {
  reinterpret_cast<resshift::cross::Sizes*>(list)->push_back(static_cast<std::int64_t>(element));
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_delete_list(StableListHandle list) {
  delete reinterpret_cast<resshift::cross::Sizes*>(list);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_get_num_threads(std::uint32_t* result) {
  *result = resshift::cross::num_threads;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, std::uint64_t) {
  resshift::cross::call(name, stack);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, std::uint32_t,
                                            TorchLibraryHandle* result) {
  *result = nullptr;
  return AOTI_TORCH_SUCCESS;
}

// Not called, but named where nothing is optimized away.
AOTITorchError aoti_torch_library_init_def(const char*, const char*, std::uint32_t, TorchLibraryHandle*) {
  return AOTI_TORCH_FAILURE;
}

AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, std::uint32_t, TorchLibraryHandle* result) {
  *result = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char* schema) {
  resshift::cross::registered().schemas.emplace_back(schema);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, resshift::cross::Boxed function,
                                  std::uint64_t) {
  resshift::cross::registered().functions[name] = function;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return AOTI_TORCH_SUCCESS; }

}  // extern "C"
