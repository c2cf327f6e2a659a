// The residual shift on the CPU, for a part of the pixels of a call: images × pixels, counted image by image.
#pragma once

#include "../../common/residual_shift.h"
#include "../isa.h"

namespace resshift::cpu {

RSF_FOR_EVERY_ISA(void chain_step(const ChainStep& call, std::int64_t begin, std::int64_t end);
                  void q_sample(const QSample& call, std::int64_t begin, std::int64_t end);)

}  // namespace resshift::cpu
