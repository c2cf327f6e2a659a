#include "add_concat_group_norm.h"

#include "group_norm_sums.h"

namespace resshift::cpu::RSF_ISA {
namespace {

// For runs so short that the call of memcpy would show.
template <class T>
RSF_INLINE void copy(T* out, const T* x, std::int64_t count) {
  constexpr std::int64_t kWhole = kVectorBytes / sizeof(T);
  std::int64_t i = 0;
  for (; i + kWhole <= count; i += kWhole) std::memcpy(out + i, x + i, kVectorBytes);
  for (; i < count; ++i) out[i] = x[i];
}

// Write pixels [begin, end), counted over the batch.
template <class T>
void merge_pixels(const AddConcatGroupNorm& call, std::int64_t begin, std::int64_t end) {
  const T *x = static_cast<const T*>(call.x), *other = static_cast<const T*>(call.other);
  const std::int64_t channels = call.norm.images.channels, first = call.channels, second = channels - first;
  T* out = static_cast<T*>(call.merged) + begin * channels;
  if (call.concat) {
    for (std::int64_t pixel = begin; pixel < end; ++pixel, out += channels) {
      copy(out, x + pixel * first, first);
      copy(out + first, other + pixel * second, second);
    }
    return;
  }
  x += begin * first;
  other += begin * first;
  const std::int64_t count = (end - begin) * first;
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i) + load(other + i));
  if (i < count) store(out + i, load(x + i, count - i) + load(other + i, count - i), count - i);
}

}  // namespace

void merge_samples(const AddConcatGroupNorm& call, std::int64_t begin, std::int64_t end) {
  const std::int64_t pixels = call.norm.images.pixels;
  dispatch(call.norm.images.dtype, [&](auto type) {
    for (std::int64_t image = begin; image < end; ++image) {
      for (std::int64_t i = 0; i < samples(pixels); ++i) {
        const std::int64_t pixel = image * pixels + sample(i, pixels);
        merge_pixels<typename decltype(type)::type>(call, pixel, pixel + 1);
      }
    }
  });
}

void merge_and_sum_groups(const AddConcatGroupNorm& call, std::int64_t begin, std::int64_t end) {
  dispatch(call.norm.images.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    sum_images<T>(call.norm, begin, end, [&](std::int64_t from, std::int64_t to) { merge_pixels<T>(call, from, to); });
  });
}

}  // namespace resshift::cpu::RSF_ISA
