// Vector quantization on the CPU; ops/vector_quantize.py has the formula.
#pragma once

#include "../common/vector_quantize.h"

namespace resshift::cpu {

void vector_quantize(const VectorQuantize& call);

}  // namespace resshift::cpu
