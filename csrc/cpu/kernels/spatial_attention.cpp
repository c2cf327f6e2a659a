// Attention between all pixels of an image: packed keys and values, and blocks of queries that iterate over them.

#include "spatial_attention.h"

#include "matrix_units.h"

namespace resshift::cpu::RSF_ISA {
namespace {

constexpr float kLowest = -3.4e38f;

// Units of channels of two neighbouring pixels; `second` is zero after the last pixel.
RSF_INLINE Floats units_of_pixels(const float*, const Floats& first, const Floats&) { return first; }
RSF_INLINE Floats units_of_pixels(const Pair*, const Floats& first, const Floats& second) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(first) >> 16 | reinterpret_cast<Words>(second));
}

// Pack the values of pixels [begin, end) of an image, as [channel blocks, units of pixels, kColumns].
template <class Unit, class T>
void pack_values(const SpatialAttention& call, const T* v, std::int64_t begin, std::int64_t end, Unit* packed) {
  const std::int64_t steps = units<Unit>(round_up(call.pixels, kPackedPixels)), each = elements_in<Unit>();
  for (std::int64_t step = begin / each; step * each < end; ++step) {
    const T* const first = v + step * each * call.channels;
    const bool whole = (step + 1) * each <= call.pixels;
    for (std::int64_t c = 0; c < call.channels; c += kLanes) {
      const std::int64_t left = call.channels - c, inside = c % kColumns;
      const Floats a = load(first + c, left);
      const Floats b = each == 2 && whole ? load(first + call.channels + c, left) : Floats{};
      Unit* const out = packed + (c - inside) * steps + step * kColumns + inside;
      store(reinterpret_cast<float*>(out), units_of_pixels(static_cast<const Unit*>(nullptr), a, b));
    }
  }
}

// A block of queries and its online softmax, in a thread's scratch memory.
template <class Unit>
struct QueryBlock {
  UnitRows<Unit> queries, probabilities;
  Unit *query_memory, *probability_memory;
  float *sums, *scores;
  float *largest, *total, *decay;  // of every query: largest score, sum of probabilities, factor of earlier sums
  std::int64_t channel_stride;

  QueryBlock(const SpatialAttention& call, float* scratch) : channel_stride(cpu::channel_stride(call)) {
    query_memory = reinterpret_cast<Unit*>(scratch);
    sums = scratch + kQueries * channel_stride;
    scores = sums + kQueries * channel_stride;
    probability_memory = reinterpret_cast<Unit*>(scores + kQueries * kKeyStride);
    probabilities = {probability_memory, kKeyStride};
    largest = scores + 2 * kQueries * kKeyStride;
    total = largest + kQueries;
    decay = total + kQueries;
  }
};

template <class Unit, class T>
void begin_block(const SpatialAttention& call, const T* q, std::int64_t count, QueryBlock<Unit>& block) {
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t c = 0; c < call.channels; c += kLanes) {
      const Floats value = load(q + row * call.channels + c, call.channels - c);
      store_elements(block.query_memory + row * block.channel_stride, c, value);
      store(block.sums + row * block.channel_stride + c, Floats{});
    }
    block.largest[row] = kLowest;
    block.total[row] = 0.0f;
  }
  block.queries = {block.query_memory, block.channel_stride};
}

struct KeepScores {
  float* scores;

  RSF_INLINE void prepare(std::int64_t) const {}
  RSF_INLINE void operator()(std::int64_t row, int v, Floats sums) const {
    store(scores + row * kKeyStride + v * kLanes, sums);
  }
};

// Scales earlier sums down and adds to them.
struct AddValues {
  float* sums;
  const float* decay;
  std::int64_t stride;

  RSF_INLINE void prepare(std::int64_t) const {}
  RSF_INLINE void operator()(std::int64_t row, int v, Floats value) const {
    float* const at = sums + row * stride + v * kLanes;
    store(at, load(at) * decay[row] + value);
  }
};

// `yes` in the first `count` lanes, `no` in the others.
RSF_INLINE Floats below(std::int64_t count, Floats yes, Floats no) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return select(lane < static_cast<std::int32_t>(count), yes, no);
}

// Turn the scores of one query for some keys into probabilities, relative to the largest score so far.
template <class Unit>
RSF_INLINE void update_softmax(QueryBlock<Unit>& block, std::int64_t row, std::int64_t keys, float scale) {
  float* const scores = block.scores + row * kKeyStride;
  const std::int64_t whole = keys / kLanes * kLanes;
  Floats highest = broadcast(kLowest);
  for (std::int64_t key = 0; key < whole; key += kLanes) highest = maximum(highest, load(scores + key));
  if (whole < keys) {
    store(scores + whole, below(keys - whole, load(scores + whole), broadcast(kLowest)));
    highest = maximum(highest, load(scores + whole));
  }
  const float before = block.largest[row], found = largest(highest);
  const float now = found > before ? found : before;
  block.largest[row] = now;
  block.decay[row] = exp(broadcast((before - now) * scale))[0];
  Floats sums = {};
  for (std::int64_t key = 0; key < keys; key += kLanes) {
    const Floats p = exp((load(scores + key) - now) * scale);
    sums += p;
    store_elements(block.probability_memory + row * kKeyStride, key, p);
  }
  block.total[row] = block.total[row] * block.decay[row] + sum(sums);
}

template <class Unit>
void attend_to_keys(const SpatialAttention& call, const Unit* keys, const Unit* values, std::int64_t first,
                    std::int64_t count, float scale, QueryBlock<Unit>& block) {
  const std::int64_t depth = units<Unit>(call.channels), there = smaller(kKeys, call.pixels - first);
  for (std::int64_t key = 0; key < there; key += kColumns) {
    const KeepScores keep{block.scores + key};
    multiply_units<kColumnVectors>(count, block.queries, keys + (first + key) * depth, depth, keep);
  }
  for (std::int64_t row = 0; row < count; ++row) update_softmax(block, row, there, scale);
  const std::int64_t steps = units<Unit>(round_up(call.pixels, kPackedPixels));
  for (std::int64_t c = 0; c < call.channels; c += kColumns) {
    const AddValues add{block.sums + c, block.decay, block.channel_stride};
    const Unit* const b = values + c * steps + units<Unit>(first) * kColumns;
    if (call.channels - c <= kLanes) {
      multiply_units<1>(count, block.probabilities, b, units<Unit>(there), add);
    } else {
      multiply_units<kColumnVectors>(count, block.probabilities, b, units<Unit>(there), add);
    }
  }
}

template <class T>
void attend(const SpatialAttention& call, const float* keys, const float* values, std::int64_t begin, std::int64_t end,
            float* scratch) {
  using Unit = UnitOf<T>;
  QueryBlock<Unit> block(call, scratch);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(call.channels));
  for (std::int64_t pixel = begin; pixel < end;) {
    const std::int64_t image = pixel / call.pixels;
    const std::int64_t count = smaller(kQueries, smaller(end, (image + 1) * call.pixels) - pixel);
    begin_block(call, static_cast<const T*>(call.q) + pixel * call.channels, count, block);
    const auto* k = reinterpret_cast<const Unit*>(keys + image * packed_size(call));
    const auto* v = reinterpret_cast<const Unit*>(values + image * packed_size(call));
    for (std::int64_t key = 0; key < call.pixels; key += kKeys) attend_to_keys(call, k, v, key, count, scale, block);
    for (std::int64_t row = 0; row < count; ++row) {
      T* const out = static_cast<T*>(call.out) + (pixel + row) * call.channels;
      const float* const sums = block.sums + row * block.channel_stride;
      const float share = 1.0f / block.total[row];
      for (std::int64_t c = 0; c < call.channels; c += kLanes) {
        store(out + c, load(sums + c) * share, call.channels - c);
      }
    }
    pixel += count;
  }
}

template <class T>
void pack(const SpatialAttention& call, std::int64_t begin, std::int64_t end, float* keys, float* values) {
  using Unit = UnitOf<T>;
  const std::int64_t groups = round_up(call.pixels, kPackedPixels) / kPackedPixels, depth = units<Unit>(call.channels);
  for (std::int64_t group = begin; group < end; ++group) {
    const std::int64_t image = group / groups, first = group % groups * kPackedPixels;
    const std::int64_t last = smaller(first + kPackedPixels, call.pixels), start = image * call.pixels * call.channels;
    const T* const k = static_cast<const T*>(call.k) + start;
    auto* packed = reinterpret_cast<Unit*>(keys + image * packed_size(call));
    for (std::int64_t pixel = first; pixel < last; pixel += kLanes) {
      const std::int64_t inside = pixel % kColumns;
      pack_columns<Unit>(k + pixel * call.channels, call.channels, last - pixel, call.channels,
                         packed + (pixel - inside) * depth + inside);
    }
    pack_values<Unit>(call, static_cast<const T*>(call.v) + start, first, last,
                      reinterpret_cast<Unit*>(values + image * packed_size(call)));
  }
}

}  // namespace

void pack_pixels(const SpatialAttention& call, std::int64_t begin, std::int64_t end, float* keys, float* values) {
  dispatch(call.dtype, [&](auto type) { pack<typename decltype(type)::type>(call, begin, end, keys, values); });
}

void spatial_attention(const SpatialAttention& call, const float* keys, const float* values, std::int64_t begin,
                       std::int64_t end, float* scratch) {
  dispatch(call.dtype,
           [&](auto type) { attend<typename decltype(type)::type>(call, keys, values, begin, end, scratch); });
}

}  // namespace resshift::cpu::RSF_ISA
