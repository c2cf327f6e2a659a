// Which instruction set the kernels of this folder are compiled for, and which of them this processor runs.
//
// Every .cpp file here is compiled once for each instruction set, with RSF_ISA naming it, into a namespace of that
// name; all but its types is declared through RSF_FOR_EVERY_ISA, and called through RSF_KERNEL. Inline functions that a
// kernel shares with other files must be RSF_INLINE: a linker keeps one copy of any other, perhaps one for a newer
// processor.
#pragma once

namespace resshift::cpu {

enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The best that this processor runs, or the limit that was set, if that is less.
Isa isa();

// Take no better one from now on, for tests; RESSHIFT_FAST_CPU_ISA=portable|avx2|avx512|avx512_bf16 does the same from
// the beginning.
void limit_isa(Isa limit);

}  // namespace resshift::cpu

#if defined(__x86_64__)
#define RSF_FOR_EVERY_ISA(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }                            \
  namespace avx2 {             \
  __VA_ARGS__                  \
  }                            \
  namespace avx512 {           \
  __VA_ARGS__                  \
  }                            \
  namespace avx512_bf16 {      \
  __VA_ARGS__                  \
  }
// The function of that name for this processor.
#define RSF_KERNEL(name)                          \
  (isa() == Isa::kAvx512Bf16 ? &avx512_bf16::name \
   : isa() == Isa::kAvx512   ? &avx512::name      \
   : isa() == Isa::kAvx2     ? &avx2::name        \
                             : &portable::name)
#else
#define RSF_FOR_EVERY_ISA(...) \
  namespace portable {         \
  __VA_ARGS__                  \
  }
#define RSF_KERNEL(name) (&portable::name)
#endif
