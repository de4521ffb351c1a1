// Rows of a large source added up with the triangle's weights, for each row of the view in order.
//
// Between the centres of two neighbouring outputs the weights of both are linear in the row: the sum of its
// rows and the sum of each times its number give what a segment adds to the output behind it and to the one
// before. Both are sums of bytes, taken from the last row to the first, exact in 16 bits: adding up the
// running sum is adding up multiples. Each source row is read once, and no product is formed before the
// segment is complete.
#pragma once

#include "axis.h"
#include "crop.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

template <int kBytes>
struct WordVector {
  typedef std::uint16_t Type __attribute__((vector_size(kBytes)));
};

template <class S>
class Segments {
 public:
  using Vec = typename S::Vec;

  Segments(std::int64_t width, std::int64_t channels, Arena& arena)
      : carry_{arena.take<float>(channels * width), arena.take<float>(channels * width)} {}

  // Whether the crop can be done so, and is faster.
  bool start(const Crop& crop, const Axis& axis, bool bicubic) {
    stretch_ = static_cast<double>(axis.size) / axis.out;
    if (bicubic || stretch_ < kLeastStretch || stretch_ > kMostRows - 1) return false;
    if (crop.run_length() < kColumns) return false;
    crop_ = crop;
    out_ = axis.out;
    add(-1, nullptr);
    return true;
  }

  // Row o of the view, after row o - 1: its runs one after the other, in [0, 1].
  void row(int o, float* out) { add(o, out); }

 private:
  using Words = typename WordVector<4 * S::kLanes>::Type;

  static constexpr int kColumns = 2 * S::kLanes;  // of a vector of words
  static constexpr int kMostRows = 21;            // 255 (1 + ... + 21) fits into 16 bits
  static constexpr double kLeastStretch = 3;      // below it fewer than three products are saved

  double centre(int o) const { return stretch_ * (o + 0.5); }

  // First row behind the centre of output o.
  int begin(int o) const {
    if (o < 0) return 0;
    return o >= out_ ? crop_.height : static_cast<int>(__builtin_ceil(centre(o) - 0.5));
  }

  // What the rows of a segment weigh for the output before its end, if they all were 1.
  double weight_before(int segment) const {
    const double first = begin(segment), rows = begin(segment + 1) - first;
    return rows * (first + 0.5 * (rows - 1) + 0.5 - centre(segment)) / stretch_;
  }

  // The segment between the centres of outputs o and o + 1: completes output o and begins the next.
  void add(int o, float* out) {
    const int first = begin(o), rows = begin(o + 1) - first;
    Sums sums;
    sums.rows = rows;
    sums.step = static_cast<float>(1.0 / stretch_);
    sums.offset = static_cast<float>((first - 0.5 - centre(o)) / stretch_);  // the running sums count from 1
    sums.scale = 0;
    if (out != nullptr)
      sums.scale = static_cast<float>(1.0 / (255.0 * (weight_before(o - 1) + rows - weight_before(o))));
    const std::int64_t length = crop_.run_length();
    for (int run = 0; run < crop_.runs(); ++run) {
      const std::uint8_t* from = crop_.row(first) + run * crop_.run_stride;
      const float* carried = carry_[0] + run * length;
      float *carry = carry_[1] + run * length, *to = out == nullptr ? nullptr : out + run * length;
      std::int64_t i = 0;
      for (; i + kGroup * kColumns <= length; i += kGroup * kColumns)
        columns<kGroup>(sums, from + i, carried + i, carry + i, to == nullptr ? nullptr : to + i);
      // The last ones may be done twice.
      for (; i < length; i += kColumns) {
        const std::int64_t at = least(i, length - kColumns);
        columns<1>(sums, from + at, carried + at, carry + at, to == nullptr ? nullptr : to + at);
      }
    }
    float* swap = carry_[0];
    carry_[0] = carry_[1];
    carry_[1] = swap;
  }

  struct Sums {
    int rows;
    float step, offset, scale;
  };

  template <int kCount>
  FASTSSL_INLINE void columns(const Sums& sums, const std::uint8_t* from, const float* carried, float* carry,
                              float* out) const {
    // The next segment is fetched while this one is added up: the processor's own prefetchers see a few bytes
    // each of many rows.
    const std::int64_t ahead = sums.rows * crop_.row_stride;
    Words sum[kCount] = {}, multiples[kCount] = {};
    for (int k = sums.rows - 1; k >= 0; --k) {
      const std::uint8_t *row = from + k * crop_.row_stride, *later = row + ahead;
      FASTSSL_UNROLL
      for (int i = 0; i < kCount; ++i) {
        if (i * kColumns % kCacheLine == 0) __builtin_prefetch(later + i * kColumns, 0, 2);
        sum[i] += load_words(row + i * kColumns);
        multiples[i] += sum[i];
      }
    }
    FASTSSL_UNROLL
    for (int i = 0; i < kCount; ++i) {
      FASTSSL_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = i * kColumns + half * S::kLanes;
        const Vec all = floats(sum[i], half);
        const Vec next = sums.step * floats(multiples[i], half) + sums.offset * all;
        if (out != nullptr) S::store(out + at, (S::load(carried + at) + (all - next)) * sums.scale);
        S::store(carry + at, next);
      }
    }
  }

  static FASTSSL_INLINE Words load_words(const std::uint8_t* p) {
    typedef std::uint8_t Bytes __attribute__((vector_size(2 * S::kLanes)));
    Bytes bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX512F__)
    return reinterpret_cast<Words>(_mm512_maskz_cvtepu8_epi16(0xffffffff, reinterpret_cast<__m256i>(bytes)));
#elif defined(__AVX2__)
    return reinterpret_cast<Words>(_mm256_cvtepu8_epi16(reinterpret_cast<__m128i>(bytes)));
#elif defined(__SSE2__)
    return reinterpret_cast<Words>(
        _mm_unpacklo_epi8(_mm_cvtsi64_si128(reinterpret_cast<long long>(bytes)), _mm_setzero_si128()));
#else
    return __builtin_convertvector(bytes, Words);
#endif
  }

  // The lower or upper half of the words.
  static FASTSSL_INLINE Vec floats(Words words, int half) {
    typedef std::uint16_t Half __attribute__((vector_size(2 * S::kLanes)));
    Half halves[2];
    __builtin_memcpy(halves, &words, sizeof words);
#if defined(__AVX512F__)
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(halves[half]));
#elif defined(__AVX2__)
    const __m256i wide = _mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(halves[half]));
#elif defined(__SSE2__)
    const __m128i wide =
        _mm_unpacklo_epi16(_mm_cvtsi64_si128(reinterpret_cast<long long>(halves[half])), _mm_setzero_si128());
#else
    const auto wide = __builtin_convertvector(halves[half], typename S::Ints);
#endif
    return __builtin_convertvector(reinterpret_cast<typename S::Ints>(wide), Vec);
  }

  static constexpr int kGroup = 4;  // vectors of words that are summed side by side

  Crop crop_{};
  int out_ = 0;
  double stretch_ = 1;
  float* carry_[2];  // [runs][run_length]: what rows so far add to the next output, and the same before
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
