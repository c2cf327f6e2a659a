// Launcher of the kernel of pointwise_conv2d; it returns the cudaError_t of the launch. ops/pointwise_conv2d.py has the
// formula.
#pragma once

#include "../common/pointwise_conv2d.h"

namespace resshift::cuda {

constexpr std::int32_t kMostNormalized = 2048;  // channels, whose normalization is in shared memory
// Blocks that fill a GPU: tiles are the largest that make so many. PROGRAMS of kernels/pointwise_conv2d.py.
constexpr std::int64_t kPointwiseFill = 192;

// Whether x has at most kMostNormalized channels if it is normalized, and a grid can hold the blocks.
bool pointwise_conv2d_supported(const PointwiseConv2d& call);

// Floats of scratch memory for the statistics of a call; all else of the call must be set.
std::int64_t pointwise_conv2d_scratch(const PointwiseConv2d& call, std::int64_t fill = kPointwiseFill);

int pointwise_conv2d(const PointwiseConv2d& call, void* stream, std::int64_t fill = kPointwiseFill);

}  // namespace resshift::cuda
