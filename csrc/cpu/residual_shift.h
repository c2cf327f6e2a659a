// posterior_step, prior_sample and q_sample on the CPU; ops/residual_shift.py has the formulas.
#pragma once

#include "../common/residual_shift.h"

namespace resshift::cpu {

void chain_step(const ChainStep& call);
void q_sample(const QSample& call);

}  // namespace resshift::cpu
