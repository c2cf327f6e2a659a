// 1×1 convolution: packed weights, normalized pixels, their product, and what is added to it.

#include "pointwise_conv2d.h"

#include "matrix_units.h"

namespace resshift::cpu::RSF_ISA {
namespace {

// Copy N pixels of an image as rows of units, normalized if there are statistics.
template <int N, class Unit, class T>
RSF_INLINE void pack_pixels(const T* x, const float* statistics, std::int64_t channels, Unit* rows,
                            std::int64_t stride) {
  for (std::int64_t c = 0; c < channels; c += kLanes) {
    const std::int64_t left = channels - c;
    Floats mean = {}, multiplier = broadcast(1.0f), offset = {};
    if (statistics) {
      mean = load(statistics + c, left);
      multiplier = load(statistics + channels + c, left);
      offset = load(statistics + 2 * channels + c, left);
    }
    for (int i = 0; i < N; ++i) {
      store_elements(rows + i * stride, c, (load(x + i * channels + c, left) - mean) * multiplier + offset);
    }
  }
}

template <class Unit, class T>
void pack(const PointwiseConv2d& call, std::int64_t pixel, std::int64_t count, Unit* rows, std::int64_t stride) {
  const T* x = static_cast<const T*>(call.x) + pixel * call.channels;
  for (std::int64_t done = 0; done < count;) {
    // Pixels of one image have the same statistics.
    const std::int64_t place = call.first + pixel + done, image = place / call.image_pixels;
    const std::int64_t n = smaller(count - done, (image + 1) * call.image_pixels - place), stop = done + n;
    const float* statistics = call.normalization ? call.normalization + image * 3 * call.channels : nullptr;
    for (; done + 4 <= stop; done += 4) {
      pack_pixels<4>(x + done * call.channels, statistics, call.channels, rows + done * stride, stride);
    }
    for (; done < stop; ++done) {
      pack_pixels<1>(x + done * call.channels, statistics, call.channels, rows + done * stride, stride);
    }
  }
}

// Pixels of a call as rows of units: x itself if it has them in that form, else a copy.
template <class Unit, class T>
UnitRows<Unit> rows_of(const PointwiseConv2d& call, std::int64_t pixel, std::int64_t count, Unit* scratch) {
  const std::int64_t width = units<Unit>(call.channels), stride = row_stride(width);
  const bool same_bits = sizeof(T) * elements_in<Unit>() == sizeof(Unit) && call.channels % elements_in<Unit>() == 0;
  if (same_bits && !call.normalization && !crowded(width)) {
    const T* x = static_cast<const T*>(call.x) + pixel * call.channels;
    return {reinterpret_cast<const Unit*>(x), width};
  }
  pack<Unit, T>(call, pixel, count, scratch, stride);
  return {scratch, stride};
}

// Some columns of some pixels of y, and which bytes of each row of x to prefetch meanwhile for the next pixels.
struct Block {
  std::int64_t pixel, count, column, columns;
  const char* next_x;
  std::int64_t x_stride, x_begin, x_end;
};

template <class T>
RSF_INLINE Floats load_either(const void* elements, Dtype dtype, std::int64_t at, std::int64_t count) {
  if (dtype == Dtype::kFloat32) return load(static_cast<const float*>(elements) + at, count);
  return load(static_cast<const T*>(elements) + at, count);
}

RSF_INLINE Floats load_bias(const PointwiseConv2d& call, std::int64_t column) {
  if (!call.bias) return Floats{};
  return dispatch(call.bias_dtype, [&](auto type) {
    return load(static_cast<const typename decltype(type)::type*>(call.bias) + column, call.out_channels - column);
  });
}

// gelu within 1.3e-4, and within 4e-5 above −3.5: less than the rounding to bfloat16. Φ is a minimax polynomial up to
// ±4.
RSF_INLINE Floats coarse_gelu(Floats z) {
  const Floats x = minimum(broadcast(4.0f), maximum(broadcast(-4.0f), z)), square = x * x;
  Floats p = broadcast(-4.400019647e-10f);
  p = p * square + 5.065562613e-8f;
  p = p * square - 2.313319327e-6f;
  p = p * square + 5.744355421e-5f;
  p = p * square - 8.831332951e-4f;
  p = p * square + 9.041064107e-3f;
  p = p * square - 6.506652522e-2f;
  p = p * square + 3.981880735e-1f;
  return select(z < -4.0f, Floats{}, z * (x * p + 0.5f));
}

template <class T>
RSF_INLINE Floats activated(Floats value) {
  return std::is_same_v<T, BFloat16> ? coarse_gelu(value) : gelu(value);
}

enum class Then { kNothing, kAdd, kGelu };

RSF_INLINE Then then(const PointwiseConv2d& call) {
  return call.gelu ? Then::kGelu : call.residual ? Then::kAdd : Then::kNothing;
}

// Finishes sums and writes them to y, in whole vectors.
template <class T, Then THEN>
struct Write {
  const PointwiseConv2d& call;
  const Block& block;
  Floats bias[kColumnVectors];

  RSF_INLINE std::int64_t place(std::int64_t row) const {
    return (block.pixel + row) * call.out_channels + block.column;
  }

  // Prefetch y and the residual while the sums are computed.
  RSF_INLINE void prepare(std::int64_t row) const {
    const char* const y = reinterpret_cast<const char*>(static_cast<const T*>(call.y) + place(row));
    for (int byte = 0; byte < kColumns * static_cast<int>(sizeof(T)); byte += 64) __builtin_prefetch(y + byte, 1);
    if (THEN == Then::kAdd) {
      __builtin_prefetch(static_cast<const char*>(call.residual) + place(row) * size_of(call.residual_dtype));
    }
    for (std::int64_t byte = block.x_begin; byte < block.x_end; byte += 64) {
      __builtin_prefetch(block.next_x + row * block.x_stride + byte, 0, 2);
    }
  }

  RSF_INLINE void operator()(std::int64_t row, int v, Floats sums) const {
    const std::int64_t at = place(row) + v * kLanes;
    Floats value = sums + bias[v];
    if (THEN == Then::kGelu) value = activated<T>(value);
    if (THEN == Then::kAdd) value += load_either<T>(call.residual, call.residual_dtype, at, kLanes);
    store(static_cast<T*>(call.y) + at, value);
  }
};

// Keeps sums for write_kept.
struct Keep {
  float* sums;  // [kBlockPixels, kColumns]

  RSF_INLINE void prepare(std::int64_t) const {}
  RSF_INLINE void operator()(std::int64_t row, int v, Floats value) const {
    store(sums + row * kColumns + v * kLanes, value);
  }
};

template <class Unit, class Finish>
void multiply_block(const Block& block, UnitRows<Unit> rows, const Unit* weight, std::int64_t depth,
                    const Finish& finish) {
  if (block.columns <= kLanes) {
    multiply_units<1>(block.count, rows, weight, depth, finish);
  } else {
    multiply_units<kColumnVectors>(block.count, rows, weight, depth, finish);
  }
}

// Finish kept sums and write them to y, whose last vector of columns may be partial.
template <class T>
void write_kept(const PointwiseConv2d& call, const Block& block, const float* sums) {
  for (std::int64_t c = 0; c < block.columns; c += kLanes) {
    const std::int64_t left = block.columns - c;
    const Floats bias = load_bias(call, block.column + c);
    for (std::int64_t row = 0; row < block.count; ++row) {
      const std::int64_t at = (block.pixel + row) * call.out_channels + block.column + c;
      Floats value = load(sums + row * kColumns + c) + bias;
      if (call.gelu) value = activated<T>(value);
      if (call.residual) value += load_either<T>(call.residual, call.residual_dtype, at, left);
      store(static_cast<T*>(call.y) + at, value, left);
    }
  }
}

template <class Unit, class T, Then THEN>
void write_block(const PointwiseConv2d& call, const Block& block, UnitRows<Unit> rows, const Unit* weight,
                 std::int64_t depth) {
  Write<T, THEN> write{call, block, {}};
  for (int v = 0; v < kColumnVectors && v * kLanes < block.columns; ++v) {
    write.bias[v] = load_bias(call, block.column + v * kLanes);
  }
  multiply_block(block, rows, weight, depth, write);
}

template <class Unit, class T>
void compute_block(const PointwiseConv2d& call, const Block& block, UnitRows<Unit> rows, const Unit* weight,
                   std::int64_t depth, float* sums) {
  // float16 is rare, and has no kernels of its own.
  if constexpr (!std::is_same_v<T, Half>) {
    // One vector of columns, or all: with two, a multiple of a vector is either.
    if (kColumnVectors == 2 ? block.columns % kLanes == 0 : block.columns == kLanes || block.columns == kColumns) {
      const auto write = then(call) == Then::kGelu  ? write_block<Unit, T, Then::kGelu>
                         : then(call) == Then::kAdd ? write_block<Unit, T, Then::kAdd>
                                                    : write_block<Unit, T, Then::kNothing>;
      return write(call, block, rows, weight, depth);
    }
  }
  multiply_block(block, rows, weight, depth, Keep{sums});
  write_kept<T>(call, block, sums);
}

// A block whose share of the next pixels' x is prefetched; the column blocks of these pixels divide it.
Block block_of(const PointwiseConv2d& call, std::int64_t pixel, std::int64_t column, std::int64_t begin,
               std::int64_t end) {
  const std::int64_t count = smaller(kBlockPixels, call.pixels - pixel);
  Block block{pixel, count, column, smaller(kColumns, end - column), nullptr, 0, 0, 0};
  if (pixel + count + kBlockPixels > call.pixels) return block;
  block.x_stride = call.channels * size_of(call.dtype);
  block.next_x = static_cast<const char*>(call.x) + (pixel + count) * block.x_stride;
  const std::int64_t blocks = (end - begin + kColumns - 1) / kColumns, lines = (block.x_stride + 63) / 64;
  const std::int64_t share = (lines + blocks - 1) / blocks * 64;
  block.x_begin = (column - begin) / kColumns * share;
  block.x_end = smaller(block.x_begin + share, block.x_stride);
  return block;
}

template <class T>
void convolve(const PointwiseConv2d& call, std::int64_t begin, std::int64_t end, const float* packed, float* scratch) {
  using Unit = UnitOf<T>;
  const auto* weight = reinterpret_cast<const Unit*>(packed);
  const std::int64_t depth = units<Unit>(call.channels);
  float* const sums = scratch + kBlockPixels * row_stride(call.channels);
  for (std::int64_t pixel = 0; pixel < call.pixels; pixel += kBlockPixels) {
    const std::int64_t count = smaller(kBlockPixels, call.pixels - pixel);
    const UnitRows<Unit> rows = rows_of<Unit, T>(call, pixel, count, reinterpret_cast<Unit*>(scratch));
    for (std::int64_t column = begin; column < end; column += kColumns) {
      const Block block = block_of(call, pixel, column, begin, end);
      dispatch(call.y_dtype, [&](auto type) {
        compute_block<Unit, typename decltype(type)::type>(call, block, rows, weight + (column - begin) * depth, depth,
                                                           sums);
      });
    }
  }
}

template <class Unit, class T>
void pack(const PointwiseConv2d& call, std::int64_t first, std::int64_t begin, std::int64_t end, Unit* packed) {
  const std::int64_t depth = units<Unit>(call.channels);
  for (std::int64_t column = begin; column < end; column += kLanes) {
    const std::int64_t place = column - first, inside = place % kColumns;
    const T* rows = static_cast<const T*>(call.weight) + column * call.channels;
    pack_columns<Unit>(rows, call.channels, end - column, call.channels, packed + (place - inside) * depth + inside);
  }
}

}  // namespace

void pack_weight(const PointwiseConv2d& call, std::int64_t first, std::int64_t begin, std::int64_t end, float* packed) {
  dispatch(call.dtype, [&](auto type) {
    using Unit = UnitOf<typename decltype(type)::type>;
    dispatch(call.weight_dtype, [&](auto weight) {
      pack<Unit, typename decltype(weight)::type>(call, first, begin, end, reinterpret_cast<Unit*>(packed));
    });
  });
}

void pointwise_conv2d(const PointwiseConv2d& call, std::int64_t begin, std::int64_t end, const float* packed,
                      float* scratch) {
  dispatch(call.dtype, [&](auto type) { convolve<typename decltype(type)::type>(call, begin, end, packed, scratch); });
}

}  // namespace resshift::cpu::RSF_ISA
