// posterior_step, prior_sample and q_sample on tensors, for any device that runs their calls.
#pragma once

#include <tuple>

#include "tensors.h"

namespace resshift::bindings {

inline Tensor next_input_like(const Tensor& x, int64_t channels, ScalarType dtype) {
  const std::vector<int64_t> size{x.size(0), channels, x.size(2), x.size(3)};
  return torch::stable::empty(size, dtype, std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

// An image that is read beside x, shaped like it, with its rows in order.
inline OptionalTensor beside(const OptionalTensor& image, const Tensor& x, const char* name) {
  if (!image) return std::nullopt;
  check_like(*image, x, name);
  return by_pixel(*image);
}

inline OptionalTensor integers(const OptionalTensor& numbers, int64_t count, const Tensor& x, const char* name) {
  if (!numbers) return std::nullopt;
  return flat(*numbers, ScalarType::Long, count, x, name);
}

// Check a call's tensors, allocate its results, and `run` it.
template <class Run>
std::tuple<Tensor, Tensor> chain_step(const Tensor& x, const OptionalTensor& prediction, const OptionalTensor& y,
                                      const Tensor& coefficients, const OptionalTensor& seed,
                                      const OptionalTensor& step, const OptionalTensor& origin, int64_t prediction_type,
                                      bool clamp_x0, const OptionalTensor& noise, const OptionalTensor& lq,
                                      ScalarType next_dtype, const Run& run) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "the latent must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "the latent must be float32");
  STD_TORCH_CHECK(prediction_type >= 0 && prediction_type <= 3, "prediction_type must be 0 to 3");
  STD_TORCH_CHECK(x.size(2) * x.size(3) < (int64_t{1} << 31), "an image has 2^31 pixels or more");
  const int64_t batch = x.size(0);
  if (lq) {
    STD_TORCH_CHECK(lq->device() == x.device() && lq->dim() == 4 && lq->size(0) == batch && lq->size(2) == x.size(2) &&
                        lq->size(3) == x.size(3),
                    "lq must be [B, C', H, W] with the latent's batch, height and width, on its device");
  }
  const int64_t lq_channels = lq ? lq->size(1) : 0;
  // What is read, by name, so that copies live until the call has been made.
  const Tensor latent = by_pixel(x), row = flat(coefficients, ScalarType::Float, kColumns, x, "coefficients");
  const OptionalTensor images[] = {beside(prediction, x, "prediction"), beside(y, x, "y"), beside(noise, x, "noise"),
                                   lq ? OptionalTensor(by_pixel(*lq)) : std::nullopt};
  const OptionalTensor numbers[] = {integers(seed, batch, x, "seed"), integers(step, 1, x, "step"),
                                    integers(origin, 2 * batch, x, "origin")};
  const std::vector<int64_t> size{batch, x.size(1), x.size(2), x.size(3)};
  Tensor x_out = torch::stable::new_empty(x, size);
  Tensor next_input = next_input_like(x, x.size(1) + lq_channels, next_dtype);
  auto view = [](const OptionalTensor& image, const char* name) { return image ? view_of(*image, name) : View{}; };
  auto data = [](const OptionalTensor& t) { return t ? static_cast<const int64_t*>(t->const_data_ptr()) : nullptr; };
  run(ChainStep{view_of(latent, "the latent"), view(images[0], "prediction"), view(images[1], "y"),
                view(images[2], "noise"), view(images[3], "lq"), static_cast<const float*>(row.const_data_ptr()),
                data(numbers[0]), data(numbers[1]), data(numbers[2]), static_cast<float*>(x_out.mutable_data_ptr()),
                next_input.mutable_data_ptr(), dtype_of(next_dtype, "next_dtype"), batch, x.size(1), lq_channels,
                x.size(2), x.size(3), static_cast<PredictionType>(prediction_type), clamp_x0});
  return {x_out, next_input};
}

template <class Run>
Tensor q_sample(const Tensor& x0, const Tensor& y, const Tensor& t, const Tensor& table, const Tensor& noise,
                const Run& run) {
  STD_TORCH_CHECK(x0.dim() == 4 && x0.numel() > 0, "x0 must be [B, C, H, W] and not empty");
  STD_TORCH_CHECK(x0.size(2) * x0.size(3) < (int64_t{1} << 31), "an image has 2^31 pixels or more");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == kColumns, "table must be [T, 8]");
  STD_TORCH_CHECK(y.scalar_type() == x0.scalar_type() && noise.scalar_type() == x0.scalar_type(),
                  "y and noise must have x0's dtype");
  // The result has x0's layout; a layout without rows in order is made contiguous and copied back.
  Tensor x_t = torch::stable::empty_like(x0), out = by_pixel(x_t);
  const Tensor images[] = {by_pixel(x0), *beside(y, x0, "y"), *beside(noise, x0, "noise")};
  const Tensor steps = flat(t, ScalarType::Long, x0.size(0), x0, "t");
  const Tensor rows = flat(table, table.scalar_type(), 0, x0, "table");
  run(QSample{view_of(images[0], "x0"), view_of(images[1], "y"), view_of(images[2], "noise"),
              static_cast<const int64_t*>(steps.const_data_ptr()), rows.const_data_ptr(), dtype_of(rows, "table"),
              rows.size(0), view_of(out, "x_t"), x0.size(0), x0.size(1), x0.size(2) * x0.size(3)});
  if (out.const_data_ptr() != x_t.const_data_ptr()) torch::stable::copy_(x_t, out);
  return x_t;
}

// The schemas are those of `torch.ops.resshift_fast`, but for the prediction type, which is a number.
inline void define_residual_shift(torch::stable::detail::StableLibrary& library) {
  library.def(
      "posterior_step(Tensor x_t, Tensor prediction, Tensor y, Tensor coefficients, Tensor seed, Tensor step, "
      "Tensor? origin, int prediction_type, bool clamp_x0, Tensor? noise, Tensor? lq, ScalarType next_dtype, "
      "bool last) -> (Tensor, Tensor)");
  library.def(
      "prior_sample(Tensor y, Tensor coefficients, Tensor seed, Tensor? origin, Tensor? noise, Tensor? lq, "
      "ScalarType next_dtype) -> (Tensor, Tensor)");
  library.def("q_sample(Tensor x0, Tensor y, Tensor t, Tensor table, Tensor noise) -> Tensor");
}

// Each operator as a function of tensors; a `Device` is made of the first one and takes the calls.
template <class Device>
struct ResidualShift {
  static std::tuple<Tensor, Tensor> posterior_step(Tensor x_t, Tensor prediction, Tensor y, Tensor coefficients,
                                                   Tensor seed, Tensor step, OptionalTensor origin,
                                                   int64_t prediction_type, bool clamp_x0, OptionalTensor noise,
                                                   OptionalTensor lq, ScalarType next_dtype, bool last) {
    const bool draws = !noise && !last;
    const bool needs_y = static_cast<PredictionType>(prediction_type) != PredictionType::kX0;
    return chain_step(x_t, prediction, needs_y ? OptionalTensor(y) : std::nullopt, coefficients,
                      draws ? OptionalTensor(seed) : std::nullopt, draws ? OptionalTensor(step) : std::nullopt, origin,
                      prediction_type, clamp_x0, last ? std::nullopt : noise, lq, next_dtype, Device{x_t});
  }

  static std::tuple<Tensor, Tensor> prior_sample(Tensor y, Tensor coefficients, Tensor seed, OptionalTensor origin,
                                                 OptionalTensor noise, OptionalTensor lq, ScalarType next_dtype) {
    return chain_step(y, std::nullopt, std::nullopt, coefficients, noise ? std::nullopt : OptionalTensor(seed),
                      std::nullopt, origin, 0, false, noise, lq, next_dtype, Device{y});
  }

  static Tensor q_sample(Tensor x0, Tensor y, Tensor t, Tensor table, Tensor noise) {
    return bindings::q_sample(x0, y, t, table, noise, Device{x0});
  }
};

template <class Device>
void implement_residual_shift(torch::stable::detail::StableLibrary& library) {
  library.impl("posterior_step", TORCH_BOX(&ResidualShift<Device>::posterior_step));
  library.impl("prior_sample", TORCH_BOX(&ResidualShift<Device>::prior_sample));
  library.impl("q_sample", TORCH_BOX(&ResidualShift<Device>::q_sample));
}

}  // namespace resshift::bindings
