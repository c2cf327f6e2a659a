// Gradients of window attention. The probabilities P are computed again; with dP = dO Vᵀ and dS = P (dP − Σ P dP),
//
//   dQ = dS K / √d,   dK = dSᵀ Q / √d,   dV = Pᵀ dO,
//
// and the bias table's gradient is the sum of dS over the windows and over the pairs of tokens with the same offset.
// Parts of the windows are summed first, which do not depend on the number of threads.

#include "window_attention_windows.h"

namespace resshift::cpu::RSF_ISA {
namespace {

// The matrices of one window and head.
struct Matrices {
  std::int64_t pitch;                   // of those that have a column for each channel
  float *keys, *key_units, *values;     // [tokens, pitch]
  float *dkeys, *dvalues;               // [tokens, pitch]
  float *queries, *dout;                // [kQueries, pitch]
  float *query_columns, *dout_columns;  // [pitch, kQueries]
  float *p, *ds;                        // [tokens, kQueries]
  float* dbias;                         // [tokens, padded tokens]

  Matrices(const WindowAttention& call, float* scratch) {
    const std::int64_t count = padded(tokens(call));
    pitch = padded(call.head_dim);
    auto next = [&](std::int64_t floats) {
      float* const found = scratch;
      scratch += floats;
      return found;
    };
    keys = next(count * pitch);
    key_units = next(count * pitch);
    values = next(count * pitch);
    dkeys = next(count * pitch);
    dvalues = next(count * pitch);
    queries = next(kQueries * pitch);
    dout = next(kQueries * pitch);
    query_columns = next(kQueries * pitch);
    dout_columns = next(kQueries * pitch);
    p = next(kQueries * count);
    ds = next(kQueries * count);
    dbias = next(count * count);
  }
};

// Turn p into probabilities and ds, which holds dP, into dS; add dS to dbias.
void differentiate(const Matrices& m, const float* total, std::int64_t count, std::int64_t first,
                   std::int64_t columns) {
  const std::int64_t bias_pitch = padded(count);
  for (std::int64_t column = 0; column < columns; column += kLanes) {
    float *const p = m.p + column, *const ds = m.ds + column, *const dbias = m.dbias + first + column;
    const Floats factor = 1.0f / load(total + column);
    Floats delta = {};
    for (std::int64_t key = 0; key < count; ++key) {
      const Floats probability = load(p + key * kQueries) * factor;
      store(p + key * kQueries, probability);
      delta += probability * load(ds + key * kQueries);
    }
    for (std::int64_t key = 0; key < count; ++key) {
      const Floats value = load(p + key * kQueries) * (load(ds + key * kQueries) - delta);
      store(ds + key * kQueries, value);
      store(dbias + key * bias_pitch, load(dbias + key * bias_pitch) + value);
    }
  }
}

// result [tokens, pitch] = scale · Σ over `here` queries of scores [tokens, kQueries] · rows [here, pitch], which is
// added unless these are the first queries.
RSF_INLINE void add_rows(float* result, const float* scores, const float* rows, const Matrices& m, std::int64_t count,
                         std::int64_t here, std::int64_t head_dim, float scale, bool first) {
  const std::int64_t pitch = m.pitch, columns = (head_dim + kLanes - 1) / kLanes * kLanes;
  multiply<Singles>(Rows{scores, kQueries, 1}, Columns{rows, pitch}, here, count, columns,
                    [&](std::int64_t key, std::int64_t channel, Floats sum) __attribute__((always_inline)) {
                      float* const place = result + key * pitch + channel;
                      store(place, first ? sum * scale : sum * scale + load(place));
                    });
}

template <class T>
void differentiate_window(const WindowAttention& call, const WindowAttentionGradients& gradients, const Window& window,
                          std::int64_t head, const float* bias, const Matrices& m) {
  using Units = typename UnitsOf<T>::Type;
  const std::int64_t count = window.count, head_dim = call.head_dim, channels = call.heads * head_dim, pitch = m.pitch;
  const std::int64_t units = (head_dim + Units::kElements - 1) / Units::kElements;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(head_dim));
  const T* const qkv = static_cast<const T*>(call.qkv) + head * head_dim;
  T* const dqkv = static_cast<T*>(gradients.dqkv) + head * head_dim;
  const Image<const T> q{qkv, 3 * channels, window.pixels}, k{qkv + channels, 3 * channels, window.pixels};
  const Image<const T> v{qkv + 2 * channels, 3 * channels, window.pixels};
  const Image<const T> dout{static_cast<const T*>(gradients.dout) + head * head_dim, channels, window.pixels};
  const Image<T> dq{dqkv, 3 * channels, window.pixels}, dk{dqkv + channels, 3 * channels, window.pixels};
  const Image<T> dv{dqkv + 2 * channels, 3 * channels, window.pixels};
  float total[kQueries];
  copy_rows<Singles>(m.keys, pitch, k, 0, count, head_dim);
  copy_rows<Units>(m.values, pitch, v, 0, count, head_dim);
  if (Units::kElements == 2) copy_rows<Units>(m.key_units, pitch, k, 0, count, head_dim);
  const float* const key_units = Units::kElements == 2 ? m.key_units : m.keys;
  for (std::int64_t first = 0; first < count; first += kQueries) {
    const std::int64_t here = count - first < kQueries ? count - first : kQueries;
    const std::int64_t columns = (here + kLanes - 1) / kLanes * kLanes;
    copy_columns<Units>(m.query_columns, q, first, here, head_dim);
    copy_columns<Units>(m.dout_columns, dout, first, here, head_dim);
    copy_rows<Singles>(m.queries, pitch, q, first, here, head_dim);
    copy_rows<Singles>(m.dout, pitch, dout, first, here, head_dim);
    score<Units>(m.p, key_units, pitch, m.query_columns, bias, call, window, first, columns);
    softmax(m.p, total, count, columns);
    multiply<Units>(Rows{m.values, pitch, 1}, Columns{m.dout_columns, kQueries}, units, count, columns,
                    [&](std::int64_t key, std::int64_t query, Floats sum)
                        __attribute__((always_inline)) { store(m.ds + key * kQueries + query, sum); });
    differentiate(m, total, count, first, columns);
    add_rows(m.dvalues, m.p, m.dout, m, count, here, head_dim, 1.0f, first == 0);
    add_rows(m.dkeys, m.ds, m.queries, m, count, here, head_dim, scale, first == 0);
    // dQ takes the place of the transposed queries.
    multiply<Singles>(Rows{m.keys, 1, pitch}, Columns{m.ds, kQueries}, count, head_dim, columns,
                      [&](std::int64_t channel, std::int64_t query, Floats sum) __attribute__((always_inline)) {
                        store(m.query_columns + channel * kQueries + query, sum * scale);
                      });
    write_columns(dq, m.query_columns, first, here, head_dim);
  }
  write_rows(dk, m.dkeys, pitch, count, head_dim);
  write_rows(dv, m.dvalues, pitch, count, head_dim);
}

// Sums of dbias [keys, padded queries] over pairs of tokens with the same offset.
void sum_offsets(float* sums, const float* dbias, const WindowAttention& call) {
  const std::int64_t side = call.window, span = call.span(), count = tokens(call), pitch = padded(count);
  for (std::int64_t i = 0; i < entries(call); ++i) sums[i] = 0.0f;
  for (std::int64_t key = 0; key < count; ++key) {
    const float* row = dbias + key * pitch;
    const std::int64_t i = key / side, j = key % side;
    for (std::int64_t line = 0; line < side; ++line) {
      float* const found = sums + (line - i + side - 1) * span + side - 1 - j;
      for (std::int64_t x = 0; x < side; ++x) found[x] += *row++;
    }
  }
}

}  // namespace

void window_attention_backward(const WindowAttention& call, const WindowAttentionGradients& gradients,
                               const float* bias, float* scratch, std::int64_t begin, std::int64_t end) {
  const std::int64_t count = tokens(call), pitch = padded(count), each = windows_each(call);
  const Matrices matrices(call, scratch);
  Window window;
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t part = i / call.heads, head = i % call.heads;
    for (std::int64_t entry = 0; entry < count * pitch; ++entry) matrices.dbias[entry] = 0.0f;
    for (std::int64_t index = part * each; index < (part + 1) * each && index < call.windows(); ++index) {
      window.find(call, index);
      dispatch(call.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        differentiate_window<T>(call, gradients, window, head, bias + head * count * pitch, matrices);
      });
    }
    sum_offsets(gradients.scratch + i * entries(call), matrices.dbias, call);
  }
}

void sum_bias_gradient(const WindowAttention& call, const WindowAttentionGradients& gradients) {
  float sums[kMaxEntries];
  for (std::int64_t head = 0; head < call.heads; ++head) {
    for (std::int64_t i = 0; i < entries(call); ++i) sums[i] = 0.0f;
    for (std::int64_t part = 0; part < parts(call); ++part) {
      const float* const found = gradients.scratch + (part * call.heads + head) * entries(call);
      for (std::int64_t i = 0; i < entries(call); ++i) sums[i] += found[i];
    }
    for (std::int64_t i = 0; i < entries(call); ++i) gradients.dtable[i * call.heads + head] = sums[i];
  }
}

}  // namespace resshift::cpu::RSF_ISA
