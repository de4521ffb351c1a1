// Antialiased resampling along one axis, as torch's interpolate(..., antialias=True): the taps of one output
// pixel inside the crop, and their weights.
#pragma once

#include "augment/portable.h"

namespace fastssl {
namespace FASTSSL_ISA {

// 1 - |x| inside [-1, 1].
template <class T>
FASTSSL_HD T triangle(T x) {
  const T weight = T(1) - (x < T(0) ? -x : x);
  return weight > T(0) ? weight : T(0);
}

// Keys' cubic with a = -1/2 inside [-2, 2].
template <class T>
FASTSSL_HD T cubic(T x) {
  x = x < T(0) ? -x : x;
  if (x < T(1)) return (T(1.5) * x - T(2.5)) * x * x + T(1);
  if (x < T(2)) return ((T(-0.5) * x + T(2.5)) * x - T(4)) * x + T(2);
  return T(0);
}

// Taps first, first + 1, ... of a crop (numbered from its edge). The k-th weighs filter((k + offset) step)
// scale.
template <class T>
struct Taps {
  int first, count;
  T offset, step, scale;
};

// Positions are computed in double: in float, the centre of a tap in a large photograph is off by a part of a
// pixel that shows.
//
//   o     output pixel, 0 <= o < out
//   size  pixels of the crop, at least 1
template <class T, bool bicubic>
FASTSSL_HD Taps<T> taps_of(int o, int size, int out) {
  const double stretch = static_cast<double>(size) / out;
  const double unit = stretch > 1.0 ? stretch : 1.0, support = bicubic ? 2.0 * unit : unit;
  const double centre = stretch * (o + 0.5);
  Taps<T> taps;
  const int first = static_cast<int>(centre - support + 0.5), last = static_cast<int>(centre + support + 0.5);
  taps.first = most(first, 0);  // conversion cuts towards zero: what is below it becomes zero as well
  taps.count = least(last, size) - taps.first;
  taps.offset = static_cast<T>(taps.first - centre + 0.5);
  taps.step = static_cast<T>(1.0 / unit);
  T sum = T(0);
  for (int k = 0; k < taps.count; ++k) {
    const T x = (T(k) + taps.offset) * taps.step;
    sum += bicubic ? cubic(x) : triangle(x);
  }
  taps.scale = T(1) / sum;
  return taps;
}

template <class T, bool bicubic>
FASTSSL_HD T weight_of(const Taps<T>& taps, int k) {
  const T x = (T(k) + taps.offset) * taps.step;
  return (bicubic ? cubic(x) : triangle(x)) * taps.scale;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
