// From tensors to the arguments of kernels: what the calls of all operators share.
//
// This file and the X_call.h are templates on the type of tensors, because csrc/emulation passes NumPy arrays through
// them and links no torch. A type has dim, size, stride, numel, const_data_ptr and mutable_data_ptr as torch has, and a
// specialization of Traits.
#pragma once

#include <optional>
#include <sstream>
#include <stdexcept>

#include "../common/view.h"

namespace resshift::bindings {

// Throw the message unless the condition holds.
template <class... Message>
void require(bool condition, const Message&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::runtime_error(text.str());
}

// dtype_of(x, name), which throws for a dtype that kernels do not take, and same_device(x, y).
template <class Array>
struct Traits;

template <class Array>
Dtype dtype_of(const Array& x, const char* name) {
  return Traits<Array>::dtype_of(x, name);
}

template <class Array>
void check_device(const Array& x, const Array& like, const char* name) {
  require(Traits<Array>::same_device(x, like), name, " is on another device than the first argument");
}

template <class T, class Array>
const T* read(const Array& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T, class Array>
const T* read(const std::optional<Array>& x) {
  return x ? read<T>(*x) : nullptr;
}

template <class T, class Array>
T* write(Array& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Whether the rows of an image [B, C, H, W] follow one another, so that a pixel has one stride.
template <class Array>
bool rows_follow(const Array& x) {
  return x.size(2) == 1 || x.size(3) == 1 || x.stride(2) == x.size(3) * x.stride(3);
}

template <class Array>
View view_of(const Array& x, const char* name) {
  require(x.dim() == 4 && x.numel() > 0, name, " must be [B, C, H, W] and not empty");
  require(rows_follow(x), name, " has rows that do not follow one another");
  return {x.const_data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), x.size(3) > 1 ? x.stride(3) : x.stride(2)};
}

template <class Array>
View view_of(const std::optional<Array>& x, const char* name) {
  return x ? view_of(*x, name) : View{};
}

// Whether images [B, C, H, W] lie densely in memory, with channels first or last.
template <class Array>
bool is_dense(const Array& x, bool channels_last) {
  const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};
  std::int64_t stride = 1;
  for (const int dimension : order[channels_last]) {
    if (x.size(dimension) != 1 && x.stride(dimension) != stride) return false;
    stride *= x.size(dimension);
  }
  return true;
}

}  // namespace resshift::bindings
