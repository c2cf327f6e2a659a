#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace resshift::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16", "neon"};

Isa best_here() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512) return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
#if defined(__aarch64__)
  return Isa::neon;
#else
  return Isa::portable;
#endif
}

Isa lesser(Isa a, Isa b) { return a < b ? a : b; }

// The best that this library has up to that one.
Isa built([[maybe_unused]] Isa isa) {
#if defined(RSF_BEST_ISA)
  return isa < Isa::RSF_BEST_ISA ? Isa::RSF_LEAST_ISA : Isa::RSF_BEST_ISA;
#elif defined(__aarch64__)
  return Isa::neon;
#else
  return isa;
#endif
}

// An unknown name limits nothing: a typing error must not stop a process that only imports the library.
Isa asked_for() {
  const char* name = std::getenv("RESSHIFT_FAST_CPU_ISA");
  for (int i = 0; name && i < static_cast<int>(std::size(kNames)); ++i) {
    if (!std::strcmp(name, kNames[i])) return static_cast<Isa>(i);
  }
  return Isa::neon;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{built(lesser(best_here(), asked_for()))};
  return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

void limit_isa(Isa limit) { chosen() = built(lesser(best_here(), limit)); }

}  // namespace resshift::cpu
