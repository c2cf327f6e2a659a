#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace resshift::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best_here() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa lesser(Isa a, Isa b) { return a < b ? a : b; }

// The best that this library has up to that one.
Isa built(Isa isa) {
#if defined(RSF_BEST_ISA)
  return isa < Isa::RSF_BEST_ISA ? Isa::RSF_LEAST_ISA : Isa::RSF_BEST_ISA;
#else
  return isa;
#endif
}

// An unknown name limits nothing: a typing error must not stop a process that only imports the library.
Isa asked_for() {
  const char* name = std::getenv("RESSHIFT_FAST_CPU_ISA");
  for (int i = 0; name && i < 4; ++i) {
    if (!std::strcmp(name, kNames[i])) return static_cast<Isa>(i);
  }
  return Isa::avx512_bf16;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{built(lesser(best_here(), asked_for()))};
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

void limit_isa(Isa limit) { chosen() = built(lesser(best_here(), limit)); }

}  // namespace resshift::cpu
