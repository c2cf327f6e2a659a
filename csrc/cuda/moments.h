// Moments that the threads of a warp combine, always in the same order.
//
// A source of moments has more(), advance() and get(), and gives each lane some of them.
#pragma once

#include "../common/moments.h"
#include "device.h"

namespace resshift::cuda {

// Combine moments of `total` elements by a warp; every lane gets the result. Only deviations from an estimate of the
// mean are squared, so that no large squares are summed.
template <class Source>
RSF_DEVICE Moments combine(const Source& source, float total) {
  float sum = 0.0f, rest = 0.0f, squares = 0.0f;
  for (Source from = source; from.more(); from.advance()) {
    const Moments part = from.get();
    sum += part.count * part.mean;
  }
  const float estimate = warp_sum(sum) / total;
  for (Source from = source; from.more(); from.advance()) {
    const Moments part = from.get();
    const float difference = part.mean - estimate;
    rest += part.count * difference;
    squares += part.squares + part.count * difference * difference;
  }
  rest = warp_sum(rest) / total;
  Moments result;
  result.count = total;
  result.mean = estimate + rest;
  result.squares = warp_sum(squares) - total * rest * rest;
  return result;
}

// Add what another set of values has to `all` (Chan, Golub and LeVeque, 1983).
RSF_DEVICE void add(Moments& all, const Moments& more) {
  const float count = all.count + more.count, share = more.count / fmaxf(count, 1.0f);
  const float difference = more.mean - all.mean;
  all.mean += difference * share;
  all.squares += more.squares + difference * difference * all.count * share;
  all.count = count;
}

// Combine one set of moments of each of LANES neighbouring lanes; all of them get the result.
template <int LANES>
RSF_DEVICE Moments combine_lanes(const Moments& own) {
  Moments result;
  result.count = fmaxf(warp_sum<LANES>(own.count), 1.0f);
  const float estimate = warp_sum<LANES>(own.count * own.mean) / result.count, difference = own.mean - estimate;
  const float rest = warp_sum<LANES>(own.count * difference) / result.count;
  result.mean = estimate + rest;
  result.squares = warp_sum<LANES>(own.squares + own.count * difference * difference) - result.count * rest * rest;
  return result;
}

}  // namespace resshift::cuda
