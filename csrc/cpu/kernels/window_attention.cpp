// Attention within windows. For each window and head, queries, keys and values are copied to matrices that, like the
// scores, fit the first caches.

#include "window_attention_windows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

// A head's column of the bias table, times log₂ e.
template <class T>
void load_column(float* column, const WindowAttention& call, std::int64_t head) {
  const T* const table = static_cast<const T*>(call.table) + head;
  for (std::int64_t i = 0; i < entries(call); ++i) column[i] = to_float(table[i * call.heads]) * kLog2E;
}

// Copy values, the left factor [head_dim, tokens] of the second product, to rows [units of tokens, pitch].
template <class T>
RSF_INLINE void copy_values(Singles, float* values, std::int64_t pitch, const Image<const T>& image, std::int64_t count,
                            std::int64_t head_dim) {
  copy_rows<Singles>(values, pitch, image, 0, count, head_dim);
}

// Turn rows [keys, kQueries] into rows of units, in place; returns how many rows these are.
RSF_INLINE std::int64_t pack_rows(Singles, float*, std::int64_t count, std::int64_t) { return count; }

#if defined(__AVX512BF16__)
RSF_INLINE void copy_values(Pairs, float* values, std::int64_t pitch, const Image<const BFloat16>& image,
                            std::int64_t count, std::int64_t head_dim) {
  for (std::int64_t i = 0; i < count; i += 2) {
    for (std::int64_t channel = 0; channel < head_dim; channel += kLanes) {
      const Floats first = load(image.token(i) + channel, head_dim - channel);
      const Floats second = i + 1 < count ? load(image.token(i + 1) + channel, head_dim - channel) : Floats{};
      store(values + i / 2 * pitch + channel, Pairs::pack(first, second));
    }
  }
}

RSF_INLINE std::int64_t pack_rows(Pairs, float* rows, std::int64_t count, std::int64_t columns) {
  for (std::int64_t i = 0; i < count; i += 2) {
    for (std::int64_t column = 0; column < columns; column += kLanes) {
      const Floats first = load(rows + i * kQueries + column);
      const Floats second = i + 1 < count ? load(rows + (i + 1) * kQueries + column) : Floats{};
      store(rows + i / 2 * kQueries + column, Pairs::pack(first, second));
    }
  }
  return (count + 1) / 2;
}
#endif

// One window and head, in `scratch`.
template <class T>
void attend(const WindowAttention& call, const Window& window, std::int64_t head, const float* bias, T* out,
            float* scratch) {
  using Units = typename UnitsOf<T>::Type;
  const std::int64_t count = window.count, head_dim = call.head_dim, channels = call.heads * head_dim;
  const std::int64_t pitch = padded(head_dim);
  const T* const qkv = static_cast<const T*>(call.qkv) + head * head_dim;
  const Image<const T> q{qkv, 3 * channels, window.pixels}, k{qkv + channels, 3 * channels, window.pixels};
  const Image<const T> v{qkv + 2 * channels, 3 * channels, window.pixels};
  const Image<T> result{out + head * head_dim, channels, window.pixels};
  float* const keys = scratch;
  float* const values = keys + padded(count) * pitch;
  float* const queries = values + padded(count) * pitch;
  float* const scores = queries + kQueries * pitch;
  float total[kQueries];
  copy_rows<Units>(keys, pitch, k, 0, count, head_dim);
  copy_values(Units{}, values, pitch, v, count, head_dim);
  for (std::int64_t first = 0; first < count; first += kQueries) {
    const std::int64_t here = count - first < kQueries ? count - first : kQueries;
    const std::int64_t columns = (here + kLanes - 1) / kLanes * kLanes;
    copy_columns<Units>(queries, q, first, here, head_dim);
    score<Units>(scores, keys, pitch, queries, bias, call, window, first, columns);
    softmax(scores, total, count, columns);
    const std::int64_t steps = pack_rows(Units{}, scores, count, columns);
    // The results take the place of the transposed queries.
    multiply<Units>(Rows{values, 1, pitch}, Columns{scores, kQueries}, steps, head_dim, columns,
                    [&](std::int64_t channel, std::int64_t query, Floats sum) __attribute__((always_inline)) {
                      store(queries + channel * kQueries + query, sum / load(total + query));
                    });
    write_columns(result, queries, first, here, head_dim);
  }
}

}  // namespace

void expand_bias(const WindowAttention& call, float* bias, std::int64_t begin, std::int64_t end) {
  const std::int64_t side = call.window, span = call.span(), count = tokens(call), pitch = padded(count);
  float column[kMaxEntries];
  for (std::int64_t head = begin; head < end; ++head) {
    dispatch(call.table_dtype, [&](auto type) { load_column<typename decltype(type)::type>(column, call, head); });
    for (std::int64_t key = 0; key < count; ++key) {
      float* row = bias + (head * count + key) * pitch;
      const std::int64_t i = key / side, j = key % side;
      for (std::int64_t line = 0; line < side; ++line) {
        const float* const found = column + (line - i + side - 1) * span + side - 1 - j;
        for (std::int64_t x = 0; x < side; ++x) *row++ = found[x];
      }
      for (std::int64_t rest = count; rest < pitch; ++rest) *row++ = 0.0f;
    }
  }
}

void window_attention(const WindowAttention& call, const float* bias, void* out, float* scratch, std::int64_t begin,
                      std::int64_t end) {
  const std::int64_t bias_size_each = tokens(call) * padded(tokens(call));
  Window window;
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t head = i % call.heads;
    if (i == begin || head == 0) window.find(call, i / call.heads);
    dispatch(call.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      attend(call, window, head, bias + head * bias_size_each, static_cast<T*>(out), scratch);
    });
  }
}

}  // namespace resshift::cpu::RSF_ISA
