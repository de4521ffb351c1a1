// What needs other pixels of the view: blur in two halves, rotation, Sobel's magnitude, quarter turns. They
// read whole planes and write rows.
#pragma once

#include "augment/neighborhood.h"
#include "steps.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

template <class S>
class Blur {
 public:
  using Vec = typename S::Vec;
  static constexpr int kLanes = S::kLanes;

  Blur(std::int64_t height, std::int64_t width, Arena& arena)
      : weights_(arena.take<float>(2 * most_radius(height, width) + 1)),
        line_(arena.take<float>(width + 2 * most_radius(height, width) + kLanes)),
        rows_(arena.take<const float*>(2 * most_radius(height, width) + 1)) {}

  void start(const Step& step, int height, int width) {
    height_ = height;
    width_ = width;
    radius_ = blur_radius(step, height, width);
    const double sigma = step.a;
    double sum = 0;
    for (int t = -radius_; t <= radius_; ++t) sum += blur_weight(sigma, t);
    // Outer taps of less than float's error in all are left out.
    constexpr double kNegligible = 4e-6;
    double left_out = 0;
    for (; radius_ > 0; --radius_) {
      const double pair = 2 * blur_weight(sigma, radius_);
      if (left_out + pair > kNegligible * sum) break;
      left_out += pair;
    }
    for (int t = -radius_; t <= radius_; ++t)
      weights_[t + radius_] = static_cast<float>(blur_weight(sigma, t) / (sum - left_out));
  }

  // Blurs a row of the view along itself, in place.
  void along(float* row) const {
    float* line = line_ + radius_;
    __builtin_memcpy(line, row, static_cast<std::size_t>(width_) * sizeof(float));
    for (int k = 1; k <= radius_; ++k) {
      line[-k] = line[reflected(-k, width_)];
      line[width_ - 1 + k] = line[reflected(width_ - 1 + k, width_)];
    }
    const int whole = width_ / kLanes * kLanes;
    for_groups<S>(whole, [&](auto count, int x) {
      weigh(count, [&](int tap) { return line_ + x + tap; }, [&](int i, Vec v) { S::store(row + x + i, v); });
    });
    if (whole < width_)
      weigh(
          Count<1>{}, [&](int tap) { return line_ + whole + tap; },
          [&](int, Vec v) { store_part<S>(row + whole, v, width_ - whole); });
  }

  // Row y of a plane blurred across. Up to a vector behind the row may be overwritten.
  void across(const float* plane, int y, float* out) const {
    for (int tap = 0; tap <= 2 * radius_; ++tap)
      rows_[tap] = plane + static_cast<std::int64_t>(reflected(y + tap - radius_, height_)) * width_;
    for_groups<S>(static_cast<int>(round_up(width_, kLanes)), [&](auto count, int x) {
      weigh(count, [&](int tap) { return rows_[tap] + x; }, [&](int i, Vec v) { S::store(out + x + i, v); });
    });
  }

 private:
  // The weighted sums of `count` vectors from each tap's place on.
  template <int count, class Place, class Put>
  FASTSSL_INLINE void weigh(Count<count>, const Place& place, const Put& put) const {
    Vec sums[count] = {};
    for (int tap = 0; tap <= 2 * radius_; ++tap) {
      const float* from = place(tap);
      const Vec weight = S::broadcast(weights_[tap]);
      FASTSSL_UNROLL
      for (int i = 0; i < count; ++i) sums[i] += weight * S::load(from + i * kLanes);
    }
    FASTSSL_UNROLL
    for (int i = 0; i < count; ++i) put(i * kLanes, sums[i]);
  }

  static std::int64_t most_radius(std::int64_t height, std::int64_t width) {
    return (height < width ? height : width) - 1;
  }

  float *weights_, *line_;  // [taps], [width + taps]
  const float** rows_;      // [taps]
  int height_ = 0, width_ = 0, radius_ = 0;
};

// Row y of a plane after a rotation by an angle.
inline void rotated_row(const Step& step, const float* plane, int height, int width, int y, float* out) {
  const Rotation<double> rotation = rotation_of<double>(step);
  const auto load = [&](int i, int j) { return plane[static_cast<std::int64_t>(i) * width + j]; };
  for (int x = 0; x < width; ++x) out[x] = static_cast<float>(rotated(rotation, height, width, y, x, load));
}

inline void sobel_row(const float* plane, int height, int width, int y, float* out) {
  const auto load = [&](int i, int j) { return plane[static_cast<std::int64_t>(i) * width + j]; };
  for (int x = 0; x < width; ++x) out[x] = sobel<float>(height, width, y, x, load);
}

// Row y of a square plane after quarter turns.
inline void turned_row(int turns, const float* plane, int size, int y, float* out) {
  const Geometry turn{0, 0, size, size, false, false, turns};
  for (int x = 0; x < size; ++x) {
    int i = y, j = x;
    unturned(turn, size, size, &i, &j);
    out[x] = plane[static_cast<std::int64_t>(i) * size + j];
  }
}

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
