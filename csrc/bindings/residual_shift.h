// posterior_step, prior_sample and q_sample on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "residual_shift_call.h"
#include "tensors.h"

namespace resshift::bindings {

// An image of x's shape whose rows follow one another.
inline OptionalTensor matching(const OptionalTensor& image, const Tensor& x, const char* name) {
  if (!image) return std::nullopt;
  check_like(*image, x, name);
  return by_pixel(*image);
}

inline OptionalTensor integers(const OptionalTensor& tensor, int64_t count, const Tensor& x, const char* name) {
  if (!tensor) return std::nullopt;
  return flat(*tensor, ScalarType::Long, count, x, name);
}

// Check a call's tensors, allocate its results, and run it. A `Device` is made of the first tensor and runs calls.
// Without a dtype the next input is not written; it is an empty tensor then.
template <class Device>
std::tuple<Tensor, Tensor> chain_step(ChainStepArguments<Tensor> given, std::optional<ScalarType> next_dtype) {
  if (!next_dtype) given.lq.reset();
  const Tensor& x = given.x;
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "the latent must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "the latent must be float32");
  STD_TORCH_CHECK(given.prediction_type >= 0 && given.prediction_type <= 3, "prediction_type must be 0 to 3");
  STD_TORCH_CHECK(x.size(2) * x.size(3) < (int64_t{1} << 31), "an image has 2^31 pixels or more");
  const Device device(x);
  const int64_t batch = x.size(0);
  ChainStepArguments<Tensor> read = given;  // with copies of tensors that kernels cannot read
  if (given.lq) {
    const Tensor& lq = *given.lq;
    STD_TORCH_CHECK(lq.device() == x.device() && lq.dim() == 4 && lq.size(0) == batch && lq.size(2) == x.size(2) &&
                        lq.size(3) == x.size(3),
                    "lq must be [B, C', H, W] with the latent's batch, height and width, on its device");
    read.lq = by_pixel(lq);
  }
  read.x = by_pixel(x);
  read.coefficients = flat(given.coefficients, ScalarType::Float, kColumns, x, "coefficients");
  read.prediction = matching(given.prediction, x, "prediction");
  read.y = matching(given.y, x, "y");
  read.noise = matching(given.noise, x, "noise");
  read.seed = integers(given.seed, batch, x, "seed");
  read.step = integers(given.step, 1, x, "step");
  read.origin = integers(given.origin, 2 * batch, x, "origin");
  const std::vector<int64_t> size{batch, x.size(1), x.size(2), x.size(3)};
  Tensor x_out = torch::stable::new_empty(x, size);
  const int64_t channels = x.size(1) + (given.lq ? given.lq->size(1) : 0);
  OptionalTensor next_input;
  if (next_dtype) next_input = empty_channels_last(x, *next_dtype, channels, x.size(2), x.size(3));
  device.run(chain_step_call(read, x_out, next_input));
  return {x_out, next_input ? *next_input : floats(x, {0})};
}

// The schemas are those of `torch.ops.resshift_fast`, but for the prediction type, which is its index.
inline void define_residual_shift(torch::stable::detail::StableLibrary& library) {
  library.def(
      "posterior_step(Tensor x_t, Tensor prediction, Tensor y, Tensor coefficients, Tensor? seed, Tensor? step, "
      "Tensor? origin, int prediction_type, bool clamp_x0, Tensor? noise, Tensor? lq, ScalarType? next_dtype, "
      "bool last) -> (Tensor, Tensor)");
  library.def(
      "prior_sample(Tensor y, Tensor coefficients, Tensor? seed, Tensor? origin, Tensor? noise, Tensor? lq, "
      "ScalarType? next_dtype) -> (Tensor, Tensor)");
  library.def("q_sample(Tensor x0, Tensor y, Tensor t, Tensor table, Tensor noise) -> Tensor");
}

// Each operator as a function of tensors.
template <class Device>
struct ResidualShift {
  static std::tuple<Tensor, Tensor> posterior_step(Tensor x_t, Tensor prediction, Tensor y, Tensor coefficients,
                                                   OptionalTensor seed, OptionalTensor step, OptionalTensor origin,
                                                   int64_t prediction_type, bool clamp_x0, OptionalTensor noise,
                                                   OptionalTensor lq, std::optional<ScalarType> next_dtype, bool last) {
    ChainStepArguments<Tensor> given{x_t, coefficients};
    given.prediction = prediction;
    if (static_cast<PredictionType>(prediction_type) != PredictionType::kX0) given.y = y;
    if (!last) given.noise = noise;
    if (!last && !noise) {
      STD_TORCH_CHECK(seed && step, "seed and step are needed where noise is drawn");
      given.seed = seed;
      given.step = step;
    }
    given.lq = lq;
    given.origin = origin;
    given.prediction_type = prediction_type;
    given.clamp_x0 = clamp_x0;
    return chain_step<Device>(given, next_dtype);
  }

  static std::tuple<Tensor, Tensor> prior_sample(Tensor y, Tensor coefficients, OptionalTensor seed,
                                                 OptionalTensor origin, OptionalTensor noise, OptionalTensor lq,
                                                 std::optional<ScalarType> next_dtype) {
    ChainStepArguments<Tensor> given{y, coefficients};
    given.noise = noise;
    STD_TORCH_CHECK(seed || noise, "a seed is needed where noise is drawn");
    if (!noise) given.seed = seed;
    given.lq = lq;
    given.origin = origin;
    return chain_step<Device>(given, next_dtype);
  }

  static Tensor q_sample(Tensor x0, Tensor y, Tensor t, Tensor table, Tensor noise) {
    STD_TORCH_CHECK(x0.dim() == 4 && x0.numel() > 0, "x0 must be [B, C, H, W] and not empty");
    STD_TORCH_CHECK(x0.size(2) * x0.size(3) < (int64_t{1} << 31), "an image has 2^31 pixels or more");
    STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == kColumns, "table must be [T, 8]");
    STD_TORCH_CHECK(y.scalar_type() == x0.scalar_type() && noise.scalar_type() == x0.scalar_type(),
                    "y and noise must have x0's dtype");
    const Device device(x0);
    const QSampleArguments<Tensor> read{
        by_pixel(x0), *matching(y, x0, "y"), flat(t, ScalarType::Long, x0.size(0), x0, "t"),
        flat(table, table.scalar_type(), 0, x0, "table"), *matching(noise, x0, "noise")};
    // The result has x0's layout; one whose rows do not follow one another is written contiguously and copied back.
    Tensor x_t = torch::stable::empty_like(x0), out = by_pixel(x_t);
    device.run(q_sample_call(read, out));
    if (out.const_data_ptr() != x_t.const_data_ptr()) torch::stable::copy_(x_t, out);
    return x_t;
  }
};

template <class Device>
void implement_residual_shift(torch::stable::detail::StableLibrary& library) {
  library.impl("posterior_step", TORCH_BOX(&ResidualShift<Device>::posterior_step));
  library.impl("prior_sample", TORCH_BOX(&ResidualShift<Device>::prior_sample));
  library.impl("q_sample", TORCH_BOX(&ResidualShift<Device>::q_sample));
}

}  // namespace resshift::bindings
