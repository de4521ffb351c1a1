// The horizontal half of a resampling with AVX-512, where it neither shrinks much nor meets an odd layout: a
// row by itself, the k-th taps of 16 outputs picked out of two registers by one permutation.
#pragma once

#include "axis.h"
#include "crop.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

#if defined(__AVX512F__)

class Picks {
 public:
  Picks(std::int64_t width, std::int64_t out, std::int64_t channels, Arena& arena)
      : base_(arena.take<int>(ceil_div(out, kLanes))),
        pick_(arena.take<std::int32_t>(round_up(out, kLanes) * kTaps)),
        row_stride_(spread_stride(width + 3 * kLanes, sizeof(float))),
        row_(arena.take<float>(channels * row_stride_)) {}

  // Whether the crop can be done so.
  bool start(const Crop& crop, const Axis& axis) {
    const int channels = crop.channels;
    if (crop.interleaved && channels != 3) return false;
    blocks_ = static_cast<int>(ceil_div(axis.out, kLanes));
    if (axis.taps > kTaps) return false;
    taps_ = axis.taps;
    weight_ = axis.weight;
    for (int q = 0; q < blocks_; ++q) {
      const int begin = q * kLanes, end = begin + kLanes < axis.out ? begin + kLanes : axis.out;
      base_[q] = axis.low(begin, end);
      if (axis.high(begin, end) - base_[q] > kWindow) return false;
      std::int32_t* pick = pick_ + q * taps_ * kLanes;
      const __m512i count = _mm512_loadu_si512(axis.count + begin);
      const __m512i from =
          _mm512_sub_epi32(_mm512_loadu_si512(axis.first + begin), _mm512_set1_epi32(base_[q]));
      for (int k = 0; k < taps_; ++k) {
        // What weighs nothing is the first pixel, which exists.
        const __m512i number = _mm512_set1_epi32(k);
        const __mmask16 exists = _mm512_cmpgt_epi32_mask(count, number);
        _mm512_storeu_si512(pick + k * kLanes, _mm512_maskz_add_epi32(exists, from, number));
      }
    }
    return true;
  }

  // row: the first of its runs, in bytes or floats, run_stride elements apart. Channel c goes to out + c *
  // plane; up to a vector behind a row may be overwritten.
  template <class T>
  void run(const Crop& crop, const T* row, std::int64_t run_stride, float* out, std::int64_t plane) const {
    if (crop.interleaved) {
      separate(row, crop.width);
    } else {
      for (int c = 0; c < crop.channels; ++c) widen(row + c * run_stride, crop.width, row_ + c * row_stride_);
    }
    if (crop.channels == 3) return pick<3>(row_, out, plane);
    for (int c = 0; c < crop.channels; ++c) pick<1>(row_ + c * row_stride_, out + c * plane, plane);
  }

 private:
  static constexpr int kLanes = kBlock, kWindow = 2 * kLanes, kTaps = 8;

  // 16 elements, of which only the first `left` are read.
  static FASTSSL_INLINE __m512 read(const std::uint8_t* p, std::int64_t left) {
    const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(left), p);
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
  }
  static FASTSSL_INLINE __m512 read(const float* p, std::int64_t left) {
    return _mm512_maskz_loadu_ps(first_lanes(left), p);
  }
  static FASTSSL_INLINE __mmask16 first_lanes(std::int64_t count) {
    return count >= kLanes ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  }

  template <class T>
  static void widen(const T* row, std::int64_t width, float* out) {
    for (std::int64_t x = 0; x < width; x += kLanes) _mm512_storeu_ps(out + x, read(row + x, width - x));
  }

  // Pixels of three channels into a row of each.
  template <class T>
  void separate(const T* row, std::int64_t width) const {
    // Where lane i of a channel lies in the first two vectors, and in the third.
    alignas(kCacheLine) std::int32_t early[3][kLanes], late[3][kLanes];
    __mmask16 is_late[3] = {};
    for (int c = 0; c < 3; ++c) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int element = 3 * lane + c;
        early[c][lane] = element & 31;
        late[c][lane] = element & 15;
        if (element >= 32) is_late[c] = static_cast<__mmask16>(is_late[c] | 1u << lane);
      }
    }
    for (std::int64_t x = 0; x < width; x += kLanes) {
      const T* p = row + 3 * x;
      const std::int64_t left = 3 * (width - x);
      const __m512 v0 = read(p, left), v1 = read(p + kLanes, left - kLanes),
                   v2 = read(p + 2 * kLanes, left - 2 * kLanes);
      for (int c = 0; c < 3; ++c) {
        const __m512 v = _mm512_permutex2var_ps(v0, _mm512_load_si512(early[c]), v1);
        _mm512_storeu_ps(row_ + c * row_stride_ + x,
                         _mm512_mask_permutexvar_ps(v, is_late[c], _mm512_load_si512(late[c]), v2));
      }
    }
  }

  template <int kChannels>
  void pick(const float* row, float* out, std::int64_t plane) const {
    switch (taps_) {
      case 1:
        return pick<kChannels, 1>(row, out, plane);
      case 2:
        return pick<kChannels, 2>(row, out, plane);
      case 3:
        return pick<kChannels, 3>(row, out, plane);
      case 4:
        return pick<kChannels, 4>(row, out, plane);
      case 5:
        return pick<kChannels, 5>(row, out, plane);
      default:
        return pick<kChannels, 0>(row, out, plane);
    }
  }

  // kKnown: the number of taps, or 0.
  template <int kChannels, int kKnown>
  void pick(const float* row, float* out, std::int64_t plane) const {
    const int taps = kKnown > 0 ? kKnown : taps_;
    for (int q = 0; q < blocks_; ++q) {
      const std::int32_t* picks = pick_ + q * taps * kLanes;
      const float* weights = weight_ + q * taps * kLanes;
      __m512 low[kChannels], high[kChannels], sum[kChannels];
      for (int c = 0; c < kChannels; ++c) {
        const float* p = row + c * row_stride_ + base_[q];
        low[c] = _mm512_loadu_ps(p);
        high[c] = _mm512_loadu_ps(p + kLanes);
        sum[c] = _mm512_setzero_ps();
      }
      FASTSSL_UNROLL
      for (int k = 0; k < taps; ++k) {
        const __m512i from = _mm512_loadu_si512(picks + k * kLanes);
        const __m512 weight = _mm512_loadu_ps(weights + k * kLanes);
        for (int c = 0; c < kChannels; ++c)
          sum[c] = _mm512_fmadd_ps(_mm512_permutex2var_ps(low[c], from, high[c]), weight, sum[c]);
      }
      for (int c = 0; c < kChannels; ++c) _mm512_storeu_ps(out + c * plane + q * kLanes, sum[c]);
    }
  }

  int blocks_ = 0, taps_ = 0;
  int* base_;                      // [blocks]: the source pixel of lane 0
  std::int32_t* pick_;             // [blocks][taps][kLanes]: lanes of the 32 pixels from there on
  const float* weight_ = nullptr;  // [blocks][taps][kLanes]
  std::int64_t row_stride_;
  float* row_;  // [channels][row_stride]: a row of the source
};

#else

class Picks {
 public:
  Picks(std::int64_t, std::int64_t, std::int64_t, Arena&) {}
  bool start(const Crop&, const Axis&) { return false; }
  template <class T>
  void run(const Crop&, const T*, std::int64_t, float*, std::int64_t) const {}
};

#endif

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
