// The steps that read other pixels of the view: blur, rotation by an angle, Sobel's magnitude. load(y, x)
// gives a value of one channel inside the view.
#pragma once

#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Reflected border that does not repeat the edge, for -size < i < 2 size - 1.
FASTSSL_HD int reflected(int i, int size) {
  i = i < 0 ? -i : i;
  return i < size ? i : 2 * size - 2 - i;
}

// Weight of a blur's tap at distance t, before normalisation: weights are divided by their sum over -radius,
// ..., radius (blur_radius in record.h).
template <class T>
FASTSSL_HD T blur_weight(T sigma, int t) {
  const T x = T(t) / sigma;
  return exp_of(T(-0.5) * x * x);
}

template <class T>
struct Rotation {
  T cosine, sine;
  bool bilinear;
  float fill;
};

// Counter-clockwise by step.a degrees; multiples of 90 are exact.
template <class T>
FASTSSL_HD Rotation<T> rotation_of(const Step& step) {
  const double degrees = step.a - step.a == 0.0f ? remainder_of(static_cast<double>(step.a), 360.0) : 0.0;
  const int quarter = static_cast<int>(rint_of(degrees / 90.0));
  const double rest = (degrees - 90.0 * quarter) / 180.0;
  const double c = cos_half_turns(rest), s = sin_half_turns(rest), x = quarter & 1 ? -s : c,
               y = quarter & 1 ? c : s;
  const double sign = quarter & 2 ? -1.0 : 1.0;
  return {static_cast<T>(sign * x), static_cast<T>(sign * y), step.b != 0.0f, step.c};
}

// The pixels that make up pixel (y, x) of the rotated view: visit(weight, row, column) for those inside, one
// for the nearest, up to four for bilinear. Returns the sum of their weights.
template <class T, class Visit>
FASTSSL_HD T visit_rotated(const Rotation<T>& rotation, int height, int width, int y, int x,
                           const Visit& visit) {
  const T half_x = T(0.5) * T(width - 1), half_y = T(0.5) * T(height - 1);
  const T dx = T(x) - half_x, dy = T(y) - half_y;
  const T u = rotation.cosine * dx - rotation.sine * dy + half_x;
  const T v = rotation.sine * dx + rotation.cosine * dy + half_y;
  if (!rotation.bilinear) {
    const int row = static_cast<int>(rint_of(v)), column = static_cast<int>(rint_of(u));
    if (row < 0 || row >= height || column < 0 || column >= width) return T(0);
    visit(T(1), row, column);
    return T(1);
  }
  const T top = floor_of(v), left = floor_of(u), fy = v - top, fx = u - left;
  T mask = T(0);
  FASTSSL_HD_LOOP
  for (int k = 0; k < 4; ++k) {
    const int row = static_cast<int>(top) + (k >> 1), column = static_cast<int>(left) + (k & 1);
    if (row < 0 || row >= height || column < 0 || column >= width) continue;
    const T weight = (k >> 1 ? fy : T(1) - fy) * (k & 1 ? fx : T(1) - fx);
    visit(weight, row, column);
    mask += weight;
  }
  return mask;
}

// What torchvision makes of their weighted sum: outside lies zero, which it mixes with the fill by the share
// that is inside.
template <class T>
FASTSSL_HD T filled(T sum, T mask, float fill) {
  return (sum - T(fill)) * mask + T(fill);
}

// load(row, column): a value of one channel.
template <class T, class Load>
FASTSSL_HD T rotated(const Rotation<T>& rotation, int height, int width, int y, int x, const Load& load) {
  T sum = T(0);
  const T mask = visit_rotated(rotation, height, width, y, x,
                               [&](T weight, int row, int column) { sum += weight * T(load(row, column)); });
  return filled(sum, mask, rotation.fill);
}

// sqrt(gx^2 + gy^2 + 1e-6) with Sobel's kernels divided by 8; a, b, c are the rows of the 3 x 3 pixels. As
// kornia.filters.sobel.
template <class T>
FASTSSL_HD T sobel_magnitude(T a0, T a1, T a2, T b0, T b2, T c0, T c1, T c2) {
  const T gx = T(0.125) * (a2 - a0 + c2 - c0) + T(0.25) * (b2 - b0);
  const T gy = T(0.125) * (c0 - a0 + c2 - a2) + T(0.25) * (c1 - a1);
  return sqrt_of(gx * gx + gy * gy + T(1e-6));
}

template <class T, class Load>
FASTSSL_HD T sobel(int height, int width, int y, int x, const Load& load) {
  const int up = most(y - 1, 0), down = least(y + 1, height - 1);
  const int left = most(x - 1, 0), right = least(x + 1, width - 1);
  return sobel_magnitude(T(load(up, left)), T(load(up, x)), T(load(up, right)), T(load(y, left)),
                         T(load(y, right)), T(load(down, left)), T(load(down, x)), T(load(down, right)));
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
