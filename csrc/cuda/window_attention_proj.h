// Launcher of the kernel of window_attention_proj; it returns the cudaError_t of the launch.
// ops/window_attention_proj.py has the formula.
#pragma once

#include "../common/window_attention_proj.h"

namespace resshift::cuda {

// Channels of a head: those of all published networks, since each size would be five more large kernels to compile.
constexpr int kProjHeadDim = 32;

// `fill` is the number of blocks from which on a launch fills a GPU: tiles are the largest that make so many.
constexpr std::int64_t kFill = 128;

// Whether window_attention_supported holds, heads have kProjHeadDim channels, and a grid can hold the blocks.
bool window_attention_proj_supported(const WindowAttentionProj& call);

// Floats of scratch memory for the statistics of a call; all else of the call must be set.
std::int64_t window_attention_proj_scratch(const WindowAttentionProj& call, std::int64_t fill = kFill);

int window_attention_proj(const WindowAttentionProj& call, void* stream, std::int64_t fill = kFill);

}  // namespace resshift::cuda
