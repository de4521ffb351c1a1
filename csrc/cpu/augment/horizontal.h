// The horizontal half of a resampling.
//
// In general the lanes of a vector are rows: as many rows as a vector has lanes are transposed, which also
// takes interleaved channels apart, an output is a sum of vectors with one weight each, and blocks of outputs
// are transposed back. With AVX-512 a row whose outputs need at most 32 neighbours per vector is done by
// itself: the k-th taps of 16 outputs are picked out of two registers by one permutation.
#pragma once

#include "axis.h"
#include "crop.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

// Where finished rows go: row r of channel c at rows[r] + c * plane.
template <class S>
struct RowGroup {
  float* rows[S::kLanes];
  int count;
  std::int64_t plane;
};

template <class S>
class Strips {
 public:
  using Vec = typename S::Vec;
  static constexpr int kLanes = S::kLanes;

  // window: at least most_window() of each view.
  Strips(std::int64_t window, std::int64_t channels, Arena& arena)
      : window_(arena.take<float>((channels * (round_up(window, kLanes) + kLanes) + kLanes) * kLanes)) {}

  // Pixels that the outputs of a block need.
  static std::int64_t most_window(std::int64_t width, std::int64_t out, bool bicubic) {
    const std::int64_t pixels = kBlock * ceil_div(width, out) + most_taps(width, out, bicubic);
    return pixels < width ? pixels : width;
  }

  // from[r]: the first run of row r, in bytes or floats; the runs of a row are run_stride elements apart.
  template <class T>
  void run(const Crop& crop, const Axis& axis, const T* const* from, std::int64_t run_stride,
           const RowGroup<S>& to) const {
    const int channels = crop.channels;
    for (std::int64_t x = 0; x < axis.out; x += kBlock) {
      const std::int64_t end = x + kBlock < axis.out ? x + kBlock : axis.out;
      const int low = axis.low(x, end), high = axis.high(x, end);
      const std::int64_t pixel = crop.interleaved ? channels : 1, begin = low * pixel, stop = high * pixel;
      const std::int64_t span = (round_up(stop - begin, kLanes) + kLanes) * kLanes;  // floats per run
      for (int run = 0; run < crop.runs(); ++run) {
        read(from, run * run_stride, crop.run_length(), begin, stop, window_ + kLanes * kLanes + run * span);
      }
      for (int c = 0; c < channels; ++c) {
        const float* window = window_ + kLanes * kLanes + (crop.interleaved ? c * kLanes : c * span);
        Vec sums[kBlock];
        for (std::int64_t o = x; o < end; ++o)
          sums[o - x] = weighted(axis, o, window + (axis.first[o] - low) * pixel * kLanes, pixel * kLanes);
        for (std::int64_t o = x; o < end; o += kLanes) write(sums + (o - x), to, c, o, end);
      }
    }
  }

 private:
  // Elements [begin, end) of a run of `length` in all rows: window[e - begin] is a vector of rows.
  template <class T>
  static void read(const T* const* from, std::int64_t offset, std::int64_t length, std::int64_t begin,
                   std::int64_t end, float* window) {
    Vec rows[kLanes];
    for (std::int64_t e = begin; e < end; e += kLanes) {
      // Never past the run: its last elements are read as a vector that begins earlier.
      const bool is_short = length < kLanes;
      const std::int64_t start = is_short ? 0 : least(e, length - kLanes);
      FASTSSL_UNROLL
      for (int r = 0; r < kLanes; ++r) {
        const T* p = from[r] + offset + start;
        rows[r] = is_short ? load_part<S>(p, length) : load<S>(p);
      }
      transpose<S>(rows);
      float* out = window + (start - begin) * kLanes;
      FASTSSL_UNROLL
      for (int i = 0; i < kLanes; ++i) S::store(out + i * kLanes, rows[i]);
    }
  }

  static FASTSSL_INLINE Vec weighted(const Axis& axis, std::int64_t o, const float* window,
                                     std::int64_t stride) {
    const float* weights = axis.weights(o);
    Vec sum{};
    for (int k = 0; k < axis.count[o]; ++k) sum += weights[k * kBlock] * S::load(window + k * stride);
    return sum;
  }

  static void write(const Vec* sums, const RowGroup<S>& to, int channel, std::int64_t o, std::int64_t end) {
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = sums[i];
    transpose<S>(rows);
    for (int r = 0; r < to.count; ++r) {
      float* out = to.rows[r] + channel * to.plane + o;
      if (o + kLanes <= end) {
        S::store(out, rows[r]);
      } else {
        store_part<S>(out, rows[r], end - o);
      }
    }
  }

  float* window_;
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
