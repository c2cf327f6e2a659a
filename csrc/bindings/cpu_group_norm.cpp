// Group normalization, its gradient, and the merging of images in front of it on CPU tensors.
#include "../cpu/kernels/group_norm.h"

#include "group_norm.h"
#include "../cpu/parallel.h"

namespace resshift::bindings {
namespace {

using namespace resshift::cpu;

// Numbers that a thread takes at least: handing over as much costs less than working on it.
constexpr int64_t kGrain = 32768;

struct Cpu {
  using Forward = GroupNorm;
  using Backward = GroupNormBackward;

  explicit Cpu(const Tensor& x) { STD_TORCH_CHECK(x.is_cpu(), "the first argument must be on the CPU"); }

  // The table comes first, of a size that keeps the doubles of the statistics behind it aligned.
  static int64_t table_size(const GroupedImages& images) { return 4 * images.batch * images.channels; }
  static int64_t scratch(const Forward& call) { return table_size(call.images) + group_norm_scratch(call.images); }
  static int64_t scratch(const Backward& call) { return group_norm_backward_scratch(call.images); }

  void operator()(Forward call) const {
    call.table = call.scratch;
    call.scratch += table_size(call.images);
    tabulate(call, nullptr);
    apply(call);
  }

  void operator()(const Backward& call) const {
    const GroupedImages& images = call.images;
    const int64_t groups = images.batch * images.num_groups, work = numbers(images);
    run(RSF_KERNEL(tabulate_again), groups, images.batch * images.channels, call);
    run(RSF_KERNEL(sum_channels), planes(images) * pixel_parts(images, kSummed).count, work, call);
    const int64_t sums = images.batch * images.channels * pixel_parts(images, kSummed).count * 4;
    run(RSF_KERNEL(tabulate_gradients), groups, sums, call);
    run(RSF_KERNEL(differentiate_parameters), images.channels, images.batch * images.channels * 8, call);
    run(RSF_KERNEL(apply_gradients), planes(images) * pixel_parts(images, kApplied).count, work, call);
  }

  // Statistics and the table; where two images are merged, the images are written first.
  static void tabulate(const GroupNorm& call, const Merge* merge) {
    const GroupedImages& images = call.images;
    const int64_t parts = summed_parts(images).count, groups = images.batch * images.num_groups;
    const int64_t sampled = images.batch * images.channels * 64, work = numbers(images);
    if (merge) run(RSF_KERNEL(merge_samples), images.batch, sampled, call, *merge);
    run(RSF_KERNEL(find_pivots), images.batch, sampled, call);
    if (merge) {
      run(RSF_KERNEL(merge_and_sum_groups), images.batch * parts, work, call, *merge);
    } else {
      run(RSF_KERNEL(sum_groups), (images.channels_last ? images.batch : groups) * parts, work, call);
    }
    run(RSF_KERNEL(tabulate), groups, groups * parts * 4 + images.batch * images.channels * 8, call);
  }

  static void apply(const GroupNorm& call) {
    const GroupedImages& images = call.images;
    run(RSF_KERNEL(apply_table), planes(images) * pixel_parts(images, kApplied).count, numbers(images), call);
  }

 private:
  static int64_t numbers(const GroupedImages& images) { return images.batch * images.channels * images.pixels; }

  // Run a stage, a kernel that takes `arguments` and a range of tasks. They work on `work` numbers together.
  template <class Stage, class... Arguments>
  static void run(Stage stage, int64_t tasks, int64_t work, const Arguments&... arguments) {
    const int64_t grain = divide_up(kGrain * tasks, work);
    parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { stage(arguments..., begin, end); });
  }
};

// (mean, multiplier, offset) of every channel, float32 [B, 3, C]: group_norm(x) is (x − mean) · multiplier + offset.
Tensor group_norm_affine(Tensor x, int64_t num_groups, Tensor weight, Tensor bias, double eps, OptionalTensor scale,
                         OptionalTensor shift) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const Cpu device(x);
  const int64_t channels = x.size(1);
  const bool channels_last = is_dense(x, true) || !is_dense(x, false);
  const auto images = images_of(x, channels, num_groups, channels_last);
  const Tensor values = dense(x, channels_last);
  Tensor table = floats(x, {x.size(0), 3, channels}), scratch = floats(x, {group_norm_scratch(images)});
  device.tabulate(GroupNorm{images, values.const_data_ptr(), affine_of(x, channels, weight, bias, scale, shift, 0),
                            static_cast<float>(eps), nullptr, nullptr, nullptr, data(scratch), data(table)},
                  nullptr);
  return table;
}

// The mode is an index of ops.add_concat_group_norm.MODES.
std::tuple<Tensor, Tensor> add_concat_group_norm(Tensor x, Tensor other, int64_t num_groups, Tensor weight, Tensor bias,
                                                 double eps, int64_t mode, OptionalTensor scale, OptionalTensor shift,
                                                 int64_t activation) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x must be [B, C, H, W] and not empty");
  const Cpu device(x);
  STD_TORCH_CHECK(mode == 0 || mode == 1, "mode must be 0 or 1");
  STD_TORCH_CHECK(other.is_cpu() && other.scalar_type() == x.scalar_type(), "other must be on the CPU, in x's dtype");
  STD_TORCH_CHECK(other.dim() == 4 && other.numel() > 0 && other.size(0) == x.size(0) && other.size(2) == x.size(2) &&
                      other.size(3) == x.size(3) && (mode == 1 || other.size(1) == x.size(1)),
                  "other must be shaped like x, but for the channels of a concatenation");
  const int64_t channels = x.size(1) + (mode == 1 ? other.size(1) : 0);
  const auto images = images_of(x, channels, num_groups, true);
  const Tensor first = dense(x, true), second = dense(other, true);
  const std::vector<int64_t> size{x.size(0), channels, x.size(2), x.size(3)};
  auto empty = [&] {
    return torch::stable::empty(size, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                MemoryFormat::ChannelsLast);
  };
  Tensor merged = empty(), y = empty();
  Tensor table = floats(x, {x.size(0), 3, channels}), scratch = floats(x, {group_norm_scratch(images)});
  const GroupNorm call{images,
                       merged.mutable_data_ptr(),
                       affine_of(x, channels, weight, bias, scale, shift, activation),
                       static_cast<float>(eps),
                       y.mutable_data_ptr(),
                       nullptr,
                       nullptr,
                       data(scratch),
                       data(table)};
  const Merge images_to_merge{first.const_data_ptr(), second.const_data_ptr(), x.size(1), mode == 1};
  device.tabulate(call, &images_to_merge);
  device.apply(call);
  return {merged, y};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  define_group_norm(library);
  library.def(
      "group_norm_affine(Tensor x, int num_groups, Tensor weight, Tensor bias, float eps, Tensor? scale, "
      "Tensor? shift) -> Tensor");
  library.def(
      "add_concat_group_norm(Tensor x, Tensor other, int num_groups, Tensor weight, Tensor bias, float eps, int mode, "
      "Tensor? scale, Tensor? shift, int activation) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CPU, library) {
  implement_group_norm<Cpu>(library);
  library.impl("group_norm_affine", TORCH_BOX(&group_norm_affine));
  library.impl("add_concat_group_norm", TORCH_BOX(&add_concat_group_norm));
}

}  // namespace resshift::bindings
