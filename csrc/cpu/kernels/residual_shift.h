// The residual shift of pixels [begin, end) of a call, counted image by image.
#pragma once

#include "../isa.h"
#include "../residual_shift.h"

namespace resshift::cpu {

RSF_FOR_EVERY_ISA(void chain_step(const ChainStep& call, std::int64_t begin, std::int64_t end);
                  void q_sample(const QSample& call, std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu
