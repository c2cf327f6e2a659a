// Kernels that are wrong on purpose, to test that the emulation finds their faults, and small correct ones of its
// parts.
#include <pybind11/stl.h>

#include <array>

#include "../common/activations.h"
#include "../common/philox.h"
#include "../cuda/device.h"
#include "../cuda/matrix.h"
#include "bindings.h"

namespace resshift {
namespace {

// out[i] = in[threads − 1 − i] through shared memory; without the barrier a thread may read what is not written yet.
__global__ void reverse_kernel(const float* in, float* out, bool barrier) {
  float* tile = dynamic_shared<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// Writes `excess` elements past the tile, or past the output.
__global__ void past_the_end_kernel(float* out, int count, bool in_shared, int excess) {
  float* tile = dynamic_shared<float>();
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count + excess) return;
  if (in_shared) tile[i] = 1.0f;
  if (!in_shared || i < count) out[i] = 1.0f;
}

__global__ void static_past_the_end_kernel(float* out, int excess) {
  RSF_SHARED(float, tile, 32);
  tile[threadIdx.x + excess] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// Sum over the warp, with a mask that may lack lanes that take part, or name lanes that do not.
__global__ void masked_sum_kernel(const float* in, float* out, unsigned mask, unsigned active) {
  if (!(active >> threadIdx.x & 1)) return;
  float value = in[threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(mask, value, offset);
  out[threadIdx.x] = value;
}

// Half of the block exits before the barrier, or waits at another one.
__global__ void divergent_barrier_kernel(float* out, bool other_barrier) {
  if (threadIdx.x < blockDim.x / 2) {
    if (!other_barrier) return;
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

// All threads of a block update one sum, in no order.
__global__ void racing_sum_kernel(float* out) {
  RSF_SHARED(float, total, 1);
  if (threadIdx.x == 0) *total = 0.0f;
  __syncthreads();
  *total = *total * 0.5f + static_cast<float>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = *total;
}

// Reads an asynchronous copy, with or without waiting for it.
__global__ void async_copy_kernel(const float* in, float* out, bool wait) {
  RSF_SHARED(float, tile, 128);
  copy_async(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);
  commit_copies();
  if (wait) wait_copies<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = tile[127 - 4 * threadIdx.x - i];
}

// Copies over a tile that other threads read, after a barrier or without one.
__global__ void overwriting_copy_kernel(const float* in, float* out, bool barrier) {
  RSF_SHARED(float, tile, 128);
  const int own = 4 * static_cast<int>(threadIdx.x), other = 124 - own;
  store_vector(tile + own, load_vector<4>(in + own));
  __syncthreads();
  const auto read = load_vector<4>(tile + other);
  if (barrier) __syncthreads();
  copy_async(tile + own, in + 128 + own);
  commit_copies();
  store_vector(out + own, read);
  wait_copies<0>();
  __syncthreads();
  store_vector(out + 128 + own, load_vector<4>(tile + other));
}

enum Divergence { kBarrierAndShuffle, kTwoMasks, kTwoOperations };

// Lanes diverge before a warp operation that names all of them.
__global__ void divergent_warp_kernel(float* out, int divergence) {
  const bool first = threadIdx.x < 16;
  if (divergence == kBarrierAndShuffle) {
    if (first) __syncthreads();
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  } else if (divergence == kTwoMasks) {
    out[threadIdx.x] = __shfl_xor_sync(first ? kAllLanes : 0xffff0000u, 1.0f, 1);
  } else if (first) {
    __syncwarp();
  } else {
    out[threadIdx.x] = static_cast<float>(__ballot_sync(kAllLanes, 1));
  }
}

// out [5, 32]: the results of warp operations on each lane's x.
__global__ void warp_operations_kernel(const float* in, float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const float x = in[lane];
  RSF_SHARED(float, sum, 1);
  if (lane == 0) *sum = 0.0f;
  __syncwarp();
  atomicAdd(sum, x);
  out[lane] = __shfl_sync(kAllLanes, x, lane * 3, 8);
  out[32 + lane] = __shfl_xor_sync(kAllLanes, x, 12, 8);
  out[64 + lane] = __shfl_down_sync(kAllLanes, x, 3, 16);
  out[96 + lane] = static_cast<float>(__ballot_sync(kAllLanes, x > 0.0f) >> 16);
  out[128 + lane] = *sum;
}

// Loads four elements at once from any offset, aligned or not.
__global__ void vector_load_kernel(const float* in, float* out, int offset) {
  const auto four = load_vector<4>(in + offset);
  for (int i = 0; i < 4; ++i) out[i] = four[i];
}

__global__ void count_kernel(float* out) { atomicAdd(out, 1.0f); }

// d += a b by one warp, fragments from shared memory by `load_matrices`. a [16, 16], b [16, 8], row by row.
template <class T>
__global__ void product_kernel(const T* a, const T* b, float* d) {
  RSF_SHARED(T, tile_a, 16 * 16);
  RSF_SHARED(T, tile_b, 32 * 8);
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, thread = lane % 4;
  for (int i = lane; i < 16 * 16; i += kWarpSize) tile_a[i] = a[i];
  for (int i = lane; i < 32 * 8; i += kWarpSize) tile_b[i] = i < 16 * 8 ? b[i] : T{0};
  __syncwarp();
  std::uint32_t fragment_a[4], pair[4];
  load_matrices(fragment_a, tile_a + (lane % 16) * 16 + lane / 16 * 8);
  load_matrices_transposed(pair, tile_b + lane * 8);
  const std::uint32_t fragment_b[2] = {pair[0], pair[1]};
  const int row[4] = {group, group, group + 8, group + 8};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[row[i] * 8 + thread * 2 + (i & 1)];
  mma_16x8x16<T>(sums, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[row[i] * 8 + thread * 2 + (i & 1)] = sums[i];
}

using emulation::Array;
using emulation::check;
using emulation::dtype_of;

const float* in(const Array& array) { return static_cast<const float*>(array.data()); }
float* out(Array& array) { return static_cast<float*>(array.mutable_data()); }

}  // namespace
}  // namespace resshift

void emulation::bind_selftest(py::module_& module) {
  using namespace resshift;
  py::module_ selftest = module.def_submodule("selftest");
  selftest.def("reverse", [](const Array& x, Array& y, bool barrier) {
    const auto threads = static_cast<unsigned>(x.shape(0));
    check(launch(reverse_kernel, dim3(1), dim3(threads), threads * sizeof(float), nullptr, in(x), out(y), barrier));
  });
  selftest.def("past_the_end", [](Array& y, bool in_shared, int excess) {
    const auto count = static_cast<int>(y.shape(0));
    check(launch(past_the_end_kernel, dim3(1), dim3(64), count * sizeof(float), nullptr, out(y), count, in_shared,
                 excess));
  });
  selftest.def("static_past_the_end", [](Array& y, int excess) {
    check(launch(static_past_the_end_kernel, dim3(1), dim3(32), 0, nullptr, out(y), excess));
  });
  selftest.def("masked_sum", [](const Array& x, Array& y, unsigned mask, unsigned active) {
    check(launch(masked_sum_kernel, dim3(1), dim3(32), 0, nullptr, in(x), out(y), mask, active));
  });
  selftest.def("divergent_barrier", [](Array& y, bool other_barrier) {
    check(launch(divergent_barrier_kernel, dim3(1), dim3(64), 0, nullptr, out(y), other_barrier));
  });
  selftest.def("racing_sum", [](Array& y) { check(launch(racing_sum_kernel, dim3(2), dim3(64), 0, nullptr, out(y))); });
  selftest.def("async_copy", [](const Array& x, Array& y, bool wait) {
    check(launch(async_copy_kernel, dim3(1), dim3(32), 0, nullptr, in(x), out(y), wait));
  });
  selftest.def("overwriting_copy", [](const Array& x, Array& y, bool barrier) {
    check(launch(overwriting_copy_kernel, dim3(1), dim3(32), 0, nullptr, in(x), out(y), barrier));
  });
  selftest.def("divergent_warp", [](Array& y, int divergence) {
    check(launch(divergent_warp_kernel, dim3(1), dim3(32), 0, nullptr, out(y), divergence));
  });
  selftest.def("warp_operations", [](const Array& x, Array& y) {
    check(launch(warp_operations_kernel, dim3(1), dim3(32), 0, nullptr, in(x), out(y)));
  });
  selftest.def("vector_load", [](const Array& x, Array& y, int offset) {
    check(launch(vector_load_kernel, dim3(1), dim3(1), 0, nullptr, in(x), out(y), offset));
  });
  selftest.def("count", [](Array& y, std::array<unsigned, 3> grid, std::array<unsigned, 3> block, std::size_t bytes) {
    check(launch(count_kernel, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), bytes, nullptr,
                 out(y)));
  });
  selftest.def("product", [](const Array& a, const Array& b, Array& d) {
    const bool half = dtype_of(a) == Dtype::kFloat16;
    if (half) {
      check(launch(product_kernel<Half>, dim3(1), dim3(32), 0, nullptr, static_cast<const Half*>(a.data()),
                   static_cast<const Half*>(b.data()), out(d)));
    } else {
      check(launch(product_kernel<BFloat16>, dim3(1), dim3(32), 0, nullptr, static_cast<const BFloat16*>(a.data()),
                   static_cast<const BFloat16*>(b.data()), out(d)));
    }
  });
  selftest.def("philox", [](const Array& counters, const Array& seeds, Array& words) {  // [n, 4], [n], [n, 4]; int64
    const auto* c = static_cast<const std::int64_t*>(counters.data());
    const auto* seed = static_cast<const std::int64_t*>(seeds.data());
    auto* w = static_cast<std::int64_t*>(words.mutable_data());
    auto word = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
    for (py::ssize_t i = 0; i < seeds.size(); ++i, c += 4, w += 4) {
      const Words r = philox4x32({word(c[0]), word(c[1]), word(c[2]), word(c[3])}, static_cast<std::uint64_t>(seed[i]));
      w[0] = r.r0, w[1] = r.r1, w[2] = r.r2, w[3] = r.r3;
    }
  });
  selftest.def("box_muller", [](const Array& radii, const Array& angles, Array& normals) {  // [n], [n] int64; [n, 2]
    const auto* radius = static_cast<const std::int64_t*>(radii.data());
    const auto* angle = static_cast<const std::int64_t*>(angles.data());
    for (py::ssize_t i = 0; i < radii.size(); ++i) {
      box_muller(static_cast<std::uint32_t>(radius[i]), static_cast<std::uint32_t>(angle[i]), out(normals)[2 * i],
                 out(normals)[2 * i + 1]);
    }
  });
  selftest.def("round_trip", [](const Array& x, Array& y) {  // float32 to the dtype of y
    for (py::ssize_t i = 0; i < x.size(); ++i) store(y.mutable_data(), dtype_of(y), i, in(x)[i]);
  });
  selftest.def("activations",
               [](const Array& x, Array& y) {  // y [5, …]: SiLU and GELU, each with its derivative, and σ
                 for (py::ssize_t i = 0; i < x.size(); ++i) {
                   const float z = in(x)[i];
                   const float values[] = {silu(z), silu_derivative(z), gelu(z), gelu_derivative(z), sigmoid(z)};
                   for (py::ssize_t k = 0; k < 5; ++k) out(y)[k * x.size() + i] = values[k];
                 }
               });
  selftest.def("widen", [](const Array& x, Array& y) {  // any dtype to float32
    for (py::ssize_t i = 0; i < x.size(); ++i) out(y)[i] = load(View{x.data(), dtype_of(x)}, i);
  });
}
