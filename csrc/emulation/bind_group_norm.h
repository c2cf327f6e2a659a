#pragma once

#include <vector>

#include "../bindings/group_norm_call.h"
#include "../cuda/group_norm.h"
#include "../cuda/group_norm_plan.h"
#include "bindings.h"

namespace emulation {

using namespace resshift;

inline GroupedImages images_of(const Array& x, std::int64_t num_groups) {
  return bindings::images_of(x, x.size(1), num_groups, !bindings::is_dense(x, false));
}

// The constants that kernels/group_norm_tiles.py has too, by their names there.
inline py::dict plan_constants() {
  using namespace cuda::partitioning;
  py::dict constants;
  constants["MIN_ROW_BYTES"] = kMinRowBytes;
  constants["MAX_ROW_BYTES"] = kMaxRowBytes;
  constants["SECTOR"] = kSectorBytes;
  constants["PROCESSORS"] = kProcessors;
  constants["LAUNCH_CYCLES"] = kLaunchCycles;
  constants["SPLIT_PROGRAMS"] = kSplitBlocks;
  constants["MAX_PARTS"] = kMaxParts;
  constants["SINGLE_ELEMENTS"] = kSingleElements;
  return constants;
}

inline void bind_group_norm(py::module_& module) {
  module.def("group_norm_plan_constants", plan_constants);
  // Both return how many floats of scratch memory they took.
  module.def("group_norm", [](const Array& x, std::int64_t num_groups, const Array& weight, const Array& bias,
                              float eps, const OptionalArray& scale, const OptionalArray& shift, bool silu, Array& y,
                              Array& mean, Array& rstd, std::int64_t parts) {
    const Affine affine = bindings::affine_of<Array>({weight, bias, scale, shift, silu}, x, x.size(1));
    GroupNorm call = bindings::group_norm_call(images_of(x, num_groups), x, affine, eps, y, mean, rstd);
    std::vector<float> scratch(cuda::group_norm_scratch(call, parts), NAN);
    call.scratch = scratch.data();
    check(cuda::group_norm(call, nullptr, parts));
    return scratch.size();
  });
  module.def("group_norm_backward",
             [](const Array& dy, const Array& x, const Array& mean, const Array& rstd, std::int64_t num_groups,
                const Array& weight, const Array& bias, const OptionalArray& scale, const OptionalArray& shift,
                bool silu, Array& dx, Array& dweight, Array& dbias, Array& dscale, Array& dshift, std::int64_t parts) {
               const Affine affine = bindings::affine_of<Array>({weight, bias, scale, shift, silu}, x, x.size(1));
               bindings::GroupNormGradients<Array> gradients{dx, dweight, dbias, dscale, dshift};
               GroupNormBackward call =
                   bindings::group_norm_backward_call(images_of(x, num_groups), dy, x, mean, rstd, affine, gradients);
               std::vector<float> scratch(cuda::group_norm_backward_scratch(call, parts), NAN);
               call.scratch = scratch.data();
               check(cuda::group_norm_backward(call, nullptr, parts));
               return scratch.size();
             });
}

}  // namespace emulation
