// The AVX-512 product of bfloat16 pairs (vdpbf16ps). A unit is a pair of neighbouring elements of the summed
// index, so the tile of tile.h runs unchanged on half as many steps.
#pragma once

#include <immintrin.h>

#include "tile.h"

namespace fastssl {
namespace FASTSSL_ISA {

template <class I>
struct Bfloat16Product : Simd<float, 64, Exp2ForBfloat16> {
  using S = Simd<float, 64, Exp2ForBfloat16>;
  using Real = float;
  using Unit = std::uint32_t;  // two bfloat16, the lower index in the lower half
  using Vec = S::Vec;

  static constexpr int kFold = 2;
  static constexpr int kRows = I::kTileRows;
  static constexpr int kVectors = 2;
  static constexpr int kCols = 32;
  static_assert(kBlock % kRows == 0 && kBlock % kCols == 0 && kRows % 2 == 0,
                "tiles must fill a block, rows in pairs");

  using UnitVec = __m512bh;
  static FASTSSL_INLINE UnitVec load_units(const Unit* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
  }
  static FASTSSL_INLINE Vec dot(Vec sum, Unit a, UnitVec b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))), b);
  }

  // Round to nearest even, both elements; NaN stays NaN.
  static FASTSSL_INLINE Unit fold(const Real* element, std::int64_t to_next) {
    const __m128 pair = _mm_setr_ps(element[0], element[to_next], 0.0f, 0.0f);
    return static_cast<Unit>(_mm_cvtsi128_si32(reinterpret_cast<__m128i>(_mm_cvtneps_pbh(pair))));
  }

  // G in pairs of columns and, for G^T, in pairs of rows.
  struct Weights {
    static constexpr int kRowStride = kBlock / 2, kRowStep = 1;   // an odd number of cache lines: 3
    static constexpr int kColStride = 1, kColStep = kBlock + 16;  // 7
    Unit by_row[kBlock * kRowStride];
    Unit by_col[kBlock / 2 * kColStep];

    const Unit* rows(int i) const { return by_row + i * kRowStride; }
    const Unit* cols(int j) const { return by_col + j; }
  };

  static FASTSSL_INLINE void store_weights(Weights& w, int i, int j, const Vec (&g)[kRows][kVectors],
                                           bool cols_too) {
    // 0, 16, 1, 17, ...: the two halves interleaved
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    FASTSSL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_si512(w.by_row + (i + r) * Weights::kRowStride + j / 2, joined(g[r][0], g[r][1]));
    }
    if (!cols_too) return;
    FASTSSL_UNROLL
    for (int r = 0; r < kRows; r += 2) {
      FASTSSL_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        _mm512_storeu_si512(w.by_col + (i + r) / 2 * Weights::kColStep + j + v * kLanes,
                            _mm512_permutexvar_epi16(interleave, joined(g[r][v], g[r + 1][v])));
      }
    }
  }

 private:
  static FASTSSL_INLINE __m512i joined(Vec low, Vec high) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
