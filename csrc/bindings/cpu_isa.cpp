// Which instruction set the kernels for CPUs run in, and a limit to it for tests.
#include "../cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "tensors.h"

namespace resshift::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best_here() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa lesser(Isa a, Isa b) { return a < b ? a : b; }

// A name that is none of these limits nothing: a typing error must not stop a process that only imports the library.
Isa asked_for() {
  const char* name = std::getenv("RESSHIFT_FAST_CPU_ISA");
  for (int i = 0; name && i < 4; ++i) {
    if (!std::strcmp(name, kNames[i])) return static_cast<Isa>(i);
  }
  return Isa::kAvx512Bf16;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{lesser(best_here(), asked_for())};
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

void limit_isa(Isa limit) { chosen() = lesser(best_here(), limit); }

}  // namespace resshift::cpu

namespace resshift::bindings {
namespace {

int64_t isa() { return static_cast<int64_t>(cpu::isa()); }

int64_t limit_isa(int64_t limit) {
  STD_TORCH_CHECK(limit >= 0 && limit <= 3,
                  "the limit must be 0 (portable), 1 (AVX2), 2 (AVX-512) or 3 (with bfloat16)");
  cpu::limit_isa(static_cast<cpu::Isa>(limit));
  return isa();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resshift_fast_cpu, library) {
  library.def("isa() -> int");
  library.def("limit_isa(int limit) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(resshift_fast_cpu, CompositeExplicitAutograd, library) {
  library.impl("isa", TORCH_BOX(&isa));
  library.impl("limit_isa", TORCH_BOX(&limit_isa));
}

}  // namespace resshift::bindings
