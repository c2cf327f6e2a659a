// How calls of 1×1 convolution are divided among threads, and what they are made of.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../cpu/kernels/pointwise_conv2d.h"
#include "channels_last.h"
#include "../cpu/parallel.h"
#include "tensors.h"
#include "../cpu/workspace.h"

namespace resshift::bindings {

using cpu::PointwiseConv2d;

// Multiplications that a thread takes at least: handing over fewer costs more than they do.
constexpr int64_t kPointwiseGrain = 1 << 18;

inline int64_t pointwise_grain(int64_t multiplications) {
  return kPointwiseGrain / std::max<int64_t>(1, multiplications) + 1;
}

// A weight [out_channels, channels], row by row, or a parameter [out_channels].
inline Tensor parameter(const Tensor& x, const std::vector<int64_t>& size, const char* name) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  const auto sizes = x.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), size.begin(), size.end()), name, " has another shape than ",
                  "expected");
  dtype_of(x, name);
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// A table [B, 3, C] for images x.
inline Tensor normalization_of(const Tensor& table, const Tensor& x) {
  return flat(table, ScalarType::Float, x.size(0) * 3 * x.size(1), x, "normalization");
}

inline const void* pointer(const OptionalTensor& x) { return x ? x->const_data_ptr() : nullptr; }

// Every thread takes some output channels of all pixels, and packs their weight for itself.
inline void run_by_columns(const PointwiseConv2d& call) {
  using namespace cpu;
  const auto pack = RSF_KERNEL(pack_weight);
  const auto compute = RSF_KERNEL(pointwise_conv2d);
  const int64_t parts = (call.out_channels + kColumnUnit - 1) / kColumnUnit;
  const int64_t grain = pointwise_grain(call.pixels * call.channels * kColumnUnit);
  parallel_for(0, parts, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kColumnUnit, end = std::min(last * kColumnUnit, call.out_channels);
    const Workspace scratch(scratch_size(call) + packed_size(call, end - begin));
    float* const packed = scratch.data() + scratch_size(call);
    pack(call, begin, begin, end, packed);
    compute(call, begin, end, packed, scratch.data());
  });
}

// Whether that is worth it: pixels are read again by every thread, but the weight by one only.
inline bool by_columns(int64_t pixels, int64_t out_channels) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = (out_channels + cpu::kColumnUnit - 1) / cpu::kColumnUnit;
  const int64_t rounds = (parts + threads - 1) / threads;
  return threads > 1 && pixels <= out_channels && rounds * threads * 10 <= parts * 11;
}

// Pack a whole weight, with all threads.
inline void pack_for_all(const PointwiseConv2d& call, float* packed) {
  using namespace cpu;
  const auto pack = RSF_KERNEL(pack_weight);
  const int64_t parts = (call.out_channels + kWidestColumns - 1) / kWidestColumns;
  const int64_t grain = pointwise_grain(8 * kWidestColumns * call.channels);
  parallel_for(0, parts, grain, [&](int64_t begin, int64_t end) {
    pack(call, 0, begin * kWidestColumns, std::min(end * kWidestColumns, call.out_channels), packed);
  });
}

}  // namespace resshift::bindings
