// posterior_step, prior_sample and q_sample in one pass over the pixels, in loops over a block of them that compilers
// vectorize. Drawing its noise is most of the work.

#include "residual_shift.h"

#include <algorithm>
#include <limits>

#include "../../common/philox.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr std::int64_t kBlock = 64;  // pixels whose noise is drawn at once

// The noise of `count` pixels of one image from `pixel` on, for four channels.
void draw(float (&z)[4][kBlock], const ChainStep& call, std::int64_t image, std::int64_t group, std::int64_t pixel,
          std::int64_t count) {
  const auto seed = static_cast<std::uint64_t>(call.seed[image]);
  const auto step = call.step ? static_cast<std::uint32_t>(*call.step) : 0u;
  std::uint32_t rows[kBlock], columns[kBlock];
  const std::int64_t row_0 = call.origin ? call.origin[2 * image] : 0;
  const std::int64_t column_0 = call.origin ? call.origin[2 * image + 1] : 0;
  std::int64_t row = pixel / call.width, column = pixel % call.width;
  for (std::int64_t i = 0; i < count; ++i) {
    rows[i] = static_cast<std::uint32_t>(row_0 + row);
    columns[i] = static_cast<std::uint32_t>(column_0 + column);
    if (++column == call.width) {
      column = 0;
      ++row;
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const Normals drawn = noise(seed, step, static_cast<std::uint32_t>(group), rows[i], columns[i]);
    z[0][i] = drawn.z0;
    z[1][i] = drawn.z1;
    z[2][i] = drawn.z2;
    z[3][i] = drawn.z3;
  }
}

// The values of `count` pixels of a channel; the dtype is looked up once.
void load_row(const View& view, std::int64_t image, std::int64_t channel, std::int64_t pixel, std::int64_t count,
              float* values) {
  dispatch(view.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* data = static_cast<const T*>(view.data) + offset(view, image, channel, pixel);
    if (view.pixel == 1) {
      for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(data[i]);
    } else {
      for (std::int64_t i = 0; i < count; ++i) values[i] = to_float(data[i * view.pixel]);
    }
  });
}

// Writes `count` values times `scale`, one for each of `stride` elements.
void store_row(void* target, Dtype dtype, std::int64_t index, std::int64_t stride, std::int64_t count, float scale,
               const float* values) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    T* data = static_cast<T*>(target) + index;
    for (std::int64_t i = 0; i < count; ++i) data[i * stride] = from_float<T>(values[i] * scale);
  });
}

void chain_block(const ChainStep& call, std::int64_t image, std::int64_t pixel, std::int64_t count) {
  const bool prior = !call.prediction.data;
  const std::int64_t pixels = call.height * call.width, out_channels = call.channels + call.lq_channels;
  const float noise_std = call.coefficients[prior ? kKappaSqrtEta : kNoiseStd];
  const float scale = call.coefficients[prior ? kInputScale : kNextInputScale];
  const std::int64_t out = (image * pixels + pixel) * out_channels;
  float z[4][kBlock], x[kBlock], prediction[kBlock], y[kBlock] = {}, noise[kBlock];
  for (std::int64_t channel = 0; channel < call.channels; ++channel) {
    if (call.seed && channel % 4 == 0) draw(z, call, image, channel / 4, pixel, count);
    load_row(call.x, image, channel, pixel, count, x);
    if (!prior) {
      load_row(call.prediction, image, channel, pixel, count, prediction);
      if (call.y.data) load_row(call.y, image, channel, pixel, count, y);
      for (std::int64_t i = 0; i < count; ++i) {
        x[i] = posterior_mean(call.coefficients, call.prediction_type, call.clamp_x0, x[i], prediction[i], y[i]);
      }
    }
    if (call.noise.data) {
      load_row(call.noise, image, channel, pixel, count, noise);
      for (std::int64_t i = 0; i < count; ++i) x[i] += noise_std * noise[i];
    }
    if (call.seed) {
      for (std::int64_t i = 0; i < count; ++i) x[i] += noise_std * z[channel % 4][i];
    }
    std::copy(x, x + count, call.x_out + (image * call.channels + channel) * pixels + pixel);
    if (call.next_input) store_row(call.next_input, call.next_dtype, out + channel, out_channels, count, scale, x);
  }
  for (std::int64_t channel = 0; channel < call.lq_channels; ++channel) {
    load_row(call.lq, image, channel, pixel, count, x);
    const std::int64_t index = out + call.channels + channel;
    store_row(call.next_input, call.next_dtype, index, out_channels, count, 1.0f, x);
  }
}

}  // namespace

void chain_step(const ChainStep& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t pixels = call.height * call.width;
  while (begin < end) {
    const std::int64_t image = begin / pixels, pixel = begin % pixels;
    const std::int64_t count = std::min({kBlock, pixels - pixel, end - begin});
    chain_block(call, image, pixel, count);
    begin += count;
  }
}

void q_sample(const QSample& call, std::int64_t begin, std::int64_t end) {
  while (begin < end) {
    const std::int64_t image = begin / call.pixels, pixel = begin % call.pixels;
    const std::int64_t count = std::min(call.pixels - pixel, end - begin), t = call.t[image];
    // A step outside the table gives NaN instead of an access out of bounds.
    const bool in_table = t >= 0 && t < call.num_steps;
    const View table{call.table, call.table_dtype};
    const float eta = in_table ? load(table, t * kColumns + kEta) : std::numeric_limits<float>::quiet_NaN();
    const float noise_std = in_table ? load(table, t * kColumns + kKappaSqrtEta) : eta;
    for (std::int64_t channel = 0; channel < call.channels; ++channel) {
      for (std::int64_t i = pixel; i < pixel + count; ++i) {
        const float x0 = load(call.x0, image, channel, i);
        const float shifted = x0 + eta * (load(call.y, image, channel, i) - x0);
        const float x_t = shifted + noise_std * load(call.noise, image, channel, i);
        store(const_cast<void*>(call.x_t.data), call.x_t.dtype, offset(call.x_t, image, channel, i), x_t);
      }
    }
    begin += count;
  }
}

}  // namespace resshift::cpu::RSF_ISA
