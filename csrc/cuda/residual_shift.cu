// posterior_step, prior_sample and q_sample, one launch each: noise from Philox in registers, and the denoiser's next
// input written in the same pass.
//
// The sampler's calls have latents of three channels in NCHW, a channels-last prediction, and one dtype for all of the
// denoiser's tensors. Their kernel gives every thread four pixels with all channels: float32 planes and the next input
// are read and written by 16 bytes, and one Philox call serves a pixel. For any other call a thread takes one pixel and
// looks dtypes up for each access; latents are so small that the launch takes most of the time.

#include "residual_shift.h"

#include "../common/philox.h"
#include "device.h"

namespace resshift::cuda {
namespace {

constexpr int kThreads = 128;
// On a multiprocessor, which leaves a thread 80 registers; by itself the compiler aims for more blocks and spills.
constexpr int kBlocks = 6;
constexpr int kRowsBlocks = 4;  // for the kernel that holds four pixels in registers
constexpr int kPixels = 4;      // of a thread of that kernel

// A thread's image, and the index of its item (a pixel, or several) in that image; a block works on one image. An image
// has fewer than 2³¹ pixels, which saves 64-bit divisions: they are subroutines.
struct Share {
  std::int64_t image;
  std::uint32_t index;

  RSF_DEVICE explicit Share(std::int64_t per_image) {
    const auto blocks = static_cast<std::uint32_t>(divide_up(per_image, kThreads));
    image = blockIdx.x / blocks;
    index = blockIdx.x % blocks * kThreads + threadIdx.x;
  }
};

// Where a thread's pixels are in the noise field.
struct Place {
  std::uint32_t row, column;

  RSF_DEVICE Place(const ChainStep& call, std::int64_t image, std::uint32_t pixel) {
    const auto width = static_cast<std::uint32_t>(call.width);
    row = pixel / width;
    column = pixel % width;
    if (call.origin) {
      row += static_cast<std::uint32_t>(call.origin[2 * image]);
      column += static_cast<std::uint32_t>(call.origin[2 * image + 1]);
    }
  }
};

template <bool PRIOR>
RSF_DEVICE float mean_of(const ChainStep& call, const float* coefficients, float x, float prediction, float y) {
  if constexpr (PRIOR) return x;
  return posterior_mean(coefficients, call.prediction_type, call.clamp_x0, x, prediction, y);
}

template <bool PRIOR>
__global__ void __launch_bounds__(kThreads, kBlocks) chain_step_kernel(const __grid_constant__ ChainStep call) {
  const std::int64_t pixels = call.height * call.width, out_channels = call.channels + call.lq_channels;
  const Share own(pixels);
  if (own.index >= pixels) return;
  const std::int64_t image = own.image, pixel = own.index, out = (image * pixels + pixel) * out_channels;
  const float noise_std = call.coefficients[PRIOR ? kKappaSqrtEta : kNoiseStd];
  const float scale = call.coefficients[PRIOR ? kInputScale : kNextInputScale];
  const std::uint32_t step = call.step ? static_cast<std::uint32_t>(*call.step) : 0;
  const Place place(call, image, own.index);
  for (std::int64_t group = 0; 4 * group < call.channels; ++group) {
    Normals z{};
    if (call.seed) {
      const auto seed = static_cast<std::uint64_t>(call.seed[image]);
      z = noise(seed, step, static_cast<std::uint32_t>(group), place.row, place.column);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t channel = 4 * group + j;
      if (channel >= call.channels) break;
      const float x = load(call.x, image, channel, pixel);
      const float prediction = PRIOR ? 0.0f : load(call.prediction, image, channel, pixel);
      const float y = call.y.data ? load(call.y, image, channel, pixel) : 0.0f;
      float result = mean_of<PRIOR>(call, call.coefficients, x, prediction, y);
      if (call.noise.data) result += noise_std * load(call.noise, image, channel, pixel);
      if (call.seed) result += noise_std * z[j];
      call.x_out[(image * call.channels + channel) * pixels + pixel] = result;
      if (call.next_input) store(call.next_input, call.next_dtype, out + channel, result * scale);
    }
  }
  for (std::int64_t channel = 0; channel < call.lq_channels; ++channel) {
    store(call.next_input, call.next_dtype, out + call.channels + channel, load(call.lq, image, channel, pixel));
  }
}

// The widest access that is aligned in every array of so many bytes that follows others of its size.
RSF_INLINE constexpr int access_bytes(int bytes) { return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4; }

template <class T, int N>
RSF_DEVICE void load_row(T (&row)[N], const T* address) {
  constexpr int kWidth = access_bytes(N * sizeof(T)) / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kWidth) {
    const auto piece = load_vector<kWidth>(address + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) row[i + j] = piece[j];
  }
}

template <class T, int N>
RSF_DEVICE void store_row(T* address, const T (&row)[N]) {
  constexpr int kWidth = access_bytes(N * sizeof(T)) / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += kWidth) {
    Vector<T, kWidth> piece;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) piece[j] = row[i + j];
    store_vector(address + i, piece);
  }
}

// The noise of kPixels neighbours, which may lie in two rows.
RSF_DEVICE void noise_of_row(Normals (&z)[kPixels], const ChainStep& call, std::int64_t image, std::uint32_t pixel) {
  const std::uint32_t step = call.step ? static_cast<std::uint32_t>(*call.step) : 0;
  const auto seed = static_cast<std::uint64_t>(call.seed[image]);
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const Place place(call, image, pixel + p);
    z[p] = noise(seed, step, 0, place.row, place.column);
  }
}

// For calls that `fits_rows` accepts. All loads are issued before the noise is drawn, whose arithmetic hides their
// latency.
template <class T, int LQ_CHANNELS, bool PRIOR>
__global__ void __launch_bounds__(kThreads, kRowsBlocks)
    chain_step_rows_kernel(const __grid_constant__ ChainStep call) {
  constexpr int kChannels = 3, kOut = kChannels + LQ_CHANNELS;
  const std::int64_t pixels = call.height * call.width;
  const Share own(pixels / kPixels);
  if (own.index >= pixels / kPixels) return;
  const std::int64_t image = own.image, pixel = std::int64_t{own.index} * kPixels;
  const std::int64_t first = image * kChannels * pixels + pixel;
  float x[kChannels][kPixels], y[kChannels][kPixels] = {}, given[kChannels][kPixels] = {}, coefficients[kColumns];
  T prediction[kPixels * kChannels], next[kPixels * kOut];
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
    const std::int64_t plane = first + channel * pixels;
    load_row(x[channel], static_cast<const float*>(call.x.data) + plane);
    if (call.y.data) load_row(y[channel], static_cast<const float*>(call.y.data) + plane);
    if (call.noise.data) load_row(given[channel], static_cast<const float*>(call.noise.data) + plane);
  }
  if constexpr (!PRIOR) {
    load_row(prediction, static_cast<const T*>(call.prediction.data) + (image * pixels + pixel) * kChannels);
  }
#pragma unroll
  for (int channel = 0; channel < LQ_CHANNELS; ++channel) {
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      next[p * kOut + kChannels + channel] =
          static_cast<const T*>(call.lq.data)[offset(call.lq, image, channel, pixel + p)];
    }
  }
#pragma unroll
  for (int column = 0; column < kColumns; ++column) coefficients[column] = call.coefficients[column];

  Normals z[kPixels] = {};
  if (call.seed) noise_of_row(z, call, image, own.index * kPixels);
  const float noise_std = coefficients[PRIOR ? kKappaSqrtEta : kNoiseStd];
  const float scale = coefficients[PRIOR ? kInputScale : kNextInputScale];
#pragma unroll
  for (int channel = 0; channel < kChannels; ++channel) {
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const float predicted = PRIOR ? 0.0f : to_float(prediction[p * kChannels + channel]);
      float& value = x[channel][p];
      value = mean_of<PRIOR>(call, coefficients, value, predicted, y[channel][p]);
      if (call.noise.data) value += noise_std * given[channel][p];
      if (call.seed) value += noise_std * z[p][channel];
      next[p * kOut + channel] = from_float<T>(value * scale);
    }
    store_row(call.x_out + first + channel * pixels, x[channel]);
  }
  if (call.next_input) store_row(static_cast<T*>(call.next_input) + (image * pixels + pixel) * kOut, next);
}

// Whether a tensor is missing or float32 and contiguous NCHW.
bool is_plane(const View& view, std::int64_t channels, std::int64_t pixels) {
  return !view.data || (view.dtype == Dtype::kFloat32 && view.pixel == 1 && view.channel == pixels &&
                        view.image == channels * pixels && is_aligned(view.data));
}

bool fits_rows(const ChainStep& call) {
  const std::int64_t pixels = call.height * call.width;
  const View& p = call.prediction;
  const bool prediction = !p.data || (p.dtype == call.next_dtype && p.channel == 1 && p.pixel == 3 &&
                                      p.image == 3 * pixels && is_aligned(p.data));
  const bool planes = is_plane(call.x, 3, pixels) && is_plane(call.y, 3, pixels) && is_plane(call.noise, 3, pixels);
  const bool lq =
      call.lq_channels == 0 || (call.lq.dtype == call.next_dtype && call.lq_channels <= 4 && call.lq_channels >= 3);
  return call.channels == 3 && pixels % kPixels == 0 && prediction && planes && lq && is_aligned(call.x_out) &&
         is_aligned(call.next_input);
}

dim3 grid_for(std::int64_t batch, std::int64_t per_image) {
  return dim3(static_cast<unsigned>(batch * divide_up(per_image, kThreads)));
}

template <bool PRIOR>
int start(const ChainStep& call, void* stream) {
  const std::int64_t pixels = call.height * call.width;
  if (!fits_rows(call)) {
    return launch(chain_step_kernel<PRIOR>, grid_for(call.batch, pixels), dim3(kThreads), 0, stream, call);
  }
  return dispatch(call.next_dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto* kernel = call.lq_channels == 0   ? chain_step_rows_kernel<T, 0, PRIOR>
                   : call.lq_channels == 3 ? chain_step_rows_kernel<T, 3, PRIOR>
                                           : chain_step_rows_kernel<T, 4, PRIOR>;
    return launch(kernel, grid_for(call.batch, pixels / kPixels), dim3(kThreads), 0, stream, call);
  });
}

// A step outside the table gives NaN instead of an access out of bounds.
template <int COLUMN>
RSF_DEVICE float table_entry(const QSample& call, std::int64_t image) {
  const std::int64_t t = call.t[image];
  if (t < 0 || t >= call.num_steps) return nanf("");
  return load(View{call.table, call.table_dtype}, t * kColumns + COLUMN);
}

__global__ void __launch_bounds__(kThreads, kBlocks) q_sample_kernel(const __grid_constant__ QSample call) {
  const Share own(call.pixels);
  if (own.index >= call.pixels) return;
  const float eta = table_entry<kEta>(call, own.image), noise_std = table_entry<kKappaSqrtEta>(call, own.image);
  for (std::int64_t channel = 0; channel < call.channels; ++channel) {
    const float x0 = load(call.x0, own.image, channel, own.index);
    const float shifted = x0 + eta * (load(call.y, own.image, channel, own.index) - x0);
    const float x_t = shifted + noise_std * load(call.noise, own.image, channel, own.index);
    store(const_cast<void*>(call.x_t.data), call.x_t.dtype, offset(call.x_t, own.image, channel, own.index), x_t);
  }
}

// For images that share one dense layout, whichever it is: by 16 bytes.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) q_sample_rows_kernel(const __grid_constant__ QSample call) {
  constexpr int kWidth = 16 / sizeof(T);
  const std::int64_t per_image = call.channels * call.pixels / kWidth;
  const Share own(per_image);
  if (own.index >= per_image) return;
  const std::int64_t first = (own.image * per_image + own.index) * kWidth;
  const float eta = table_entry<kEta>(call, own.image), noise_std = table_entry<kKappaSqrtEta>(call, own.image);
  auto x = load_vector<kWidth>(static_cast<const T*>(call.x0.data) + first);
  const auto y = load_vector<kWidth>(static_cast<const T*>(call.y.data) + first);
  const auto z = load_vector<kWidth>(static_cast<const T*>(call.noise.data) + first);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    const float x0 = to_float(x[j]);
    x[j] = from_float<T>(x0 + eta * (to_float(y[j]) - x0) + noise_std * to_float(z[j]));
  }
  store_vector(static_cast<T*>(const_cast<void*>(call.x_t.data)) + first, x);
}

bool same_layout(const View& a, const View& b) {
  return a.image == b.image && a.channel == b.channel && a.pixel == b.pixel;
}

bool is_dense(const QSample& call) {
  const View& x = call.x0;
  const std::int64_t per_image = call.channels * call.pixels;
  const bool planes = x.pixel == 1 && x.channel == call.pixels;
  const bool channels_last = x.channel == 1 && x.pixel == call.channels;
  return x.image == per_image && (planes || channels_last) && per_image % 8 == 0 && same_layout(x, call.y) &&
         same_layout(x, call.noise) && same_layout(x, call.x_t) && is_aligned(x.data) && is_aligned(call.y.data) &&
         is_aligned(call.noise.data) && is_aligned(call.x_t.data);
}

}  // namespace

int chain_step(const ChainStep& call, void* stream) {
  return call.prediction.data ? start<false>(call, stream) : start<true>(call, stream);
}

int q_sample(const QSample& call, void* stream) {
  if (!is_dense(call))
    return launch(q_sample_kernel, grid_for(call.batch, call.pixels), dim3(kThreads), 0, stream, call);
  return dispatch(call.x0.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const std::int64_t pieces = call.channels * call.pixels * static_cast<std::int64_t>(sizeof(T)) / 16;
    return launch(q_sample_rows_kernel<T>, grid_for(call.batch, pieces), dim3(kThreads), 0, stream, call);
  });
}

}  // namespace resshift::cuda
