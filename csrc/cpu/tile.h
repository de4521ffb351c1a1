// The register tile: kRows x kCols sums of products held in vector registers, the heart of both products.
#pragma once

#include "arena.h"
#include "simd.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Rows and columns are cut into blocks of kBlock: a multiple of every tile's height and width.
constexpr int kBlock = 96;

// Valid rows or columns of block b, rounded up to whole tiles.
FASTSSL_INLINE int tiles_extent(std::int64_t b, std::int64_t count, int tile) {
  const std::int64_t left = count - b * kBlock;
  return static_cast<int>(round_up(left < kBlock ? left : kBlock, tile));
}

// Arithmetic in T throughout. A "unit" is what one broadcast fetches and one dot step consumes: here one
// element. I: the instruction set's shape (kVectorBytes, kTileRows, kTileVectors).
template <class I, class T>
struct PlainProduct : Simd<T, I::kVectorBytes> {
  using S = Simd<T, I::kVectorBytes>;
  using Real = T;
  using Unit = T;
  using Vec = typename S::Vec;

  static constexpr int kFold = 1;  // elements per unit
  static constexpr int kRows = I::kTileRows;
  static constexpr int kVectors = I::kTileVectors;
  static constexpr int kCols = kVectors * S::kLanes;
  static_assert(kBlock % kRows == 0 && kBlock % kCols == 0, "tiles must fill a block");

  using UnitVec = Vec;
  static FASTSSL_INLINE UnitVec load_units(const Unit* p) { return S::load(p); }
  static FASTSSL_INLINE Vec dot(Vec sum, Unit a, UnitVec b) { return sum + a * b; }

  static FASTSSL_INLINE Unit fold(const Real* element, std::int64_t /* to_next */) { return *element; }

  // The block of G, [kBlock rows][kBlock columns], as left operand of G Z and, with the strides exchanged, of
  // G^T Z.
  struct Weights {
    static constexpr int kStride = kBlock + kCacheLine / static_cast<int>(sizeof(T));
    static constexpr int kRowStride = kStride, kRowStep = 1;  // G: from row to row, from column to column
    static constexpr int kColStride = 1, kColStep = kStride;  // G^T
    T data[kBlock * kStride];

    const T* rows(int i) const { return data + i * kStride; }
    const T* cols(int j) const { return data + j; }
  };

  static FASTSSL_INLINE void store_weights(Weights& w, int i, int j, const Vec (&g)[kRows][kVectors],
                                           bool /* cols_too */) {
    FASTSSL_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FASTSSL_UNROLL
      for (int v = 0; v < kVectors; ++v)
        S::store(w.data + (i + r) * Weights::kStride + j + v * S::kLanes, g[r][v]);
    }
  }
};

template <class P>
using Tile = typename P::Vec[P::kRows][P::kVectors];

template <class P>
FASTSSL_INLINE void clear(Tile<P>& acc) {
  FASTSSL_UNROLL
  for (int r = 0; r < P::kRows; ++r) {
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) acc[r][v] = typename P::Vec{};
  }
}

// acc[r][:] += sum over steps t of a[r kAStride + t kAStep] . b[t b_stride + :]. The left strides are
// constants so that the addresses of all rows are one register and immediate offsets.
template <class P, int kAStride, int kAStep>
FASTSSL_INLINE void multiply(Tile<P>& acc, const typename P::Unit* a, const typename P::Unit* b,
                             std::int64_t b_stride, std::int64_t steps) {
  for (std::int64_t t = 0; t < steps; ++t) {
    typename P::UnitVec column[P::kVectors];
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) column[v] = P::load_units(b + v * P::kLanes);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) acc[r][v] = P::dot(acc[r][v], a[r * kAStride], column[v]);
    }
    a += kAStep;
    b += b_stride;
  }
}

// The tile at (i, j) of a block of tiles in memory: kRows x kCols numbers.
template <class P>
FASTSSL_INLINE typename P::Real* tile_at(typename P::Real* block, int i, int j) {
  return block + j * kBlock + i * P::kCols;
}
template <class P>
FASTSSL_INLINE const typename P::Real* tile_at(const typename P::Real* block, int i, int j) {
  return block + j * kBlock + i * P::kCols;
}

template <class P>
FASTSSL_INLINE void load_tile(const typename P::Real* from, Tile<P>& out) {
  FASTSSL_UNROLL
  for (int r = 0; r < P::kRows; ++r) {
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) out[r][v] = P::load(from + (r * P::kVectors + v) * P::kLanes);
  }
}

template <class P>
FASTSSL_INLINE void store_tile(typename P::Real* to, const Tile<P>& values) {
  FASTSSL_UNROLL
  for (int r = 0; r < P::kRows; ++r) {
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) P::store(to + (r * P::kVectors + v) * P::kLanes, values[r][v]);
  }
}

// The product of a block of rows and a block of columns, [steps][kBlock] each, tile by tile. Of wide rows all
// but the last part is multiplied for all tiles first, a part after the other: what a tile reads, and the
// next one again, stays in the first cache.
template <class P>
class BlockProduct {
 public:
  using Real = typename P::Real;
  using Unit = typename P::Unit;

  // height, width: of the tiles that will be asked for. scratch: a block of Reals, which must stay.
  BlockProduct(const Unit* rows, const Unit* columns, std::int64_t steps, int height, int width,
               Real* scratch)
      : rows_(rows), columns_(columns), left_(steps), begun_(nullptr) {
    while (left_ > kDepth) {
      multiply_part(rows_, columns_, height, width, /*first=*/begun_ == nullptr, scratch);
      rows_ += kDepth * kBlock;
      columns_ += kDepth * kBlock;
      left_ -= kDepth;
      begun_ = scratch;
    }
  }

  FASTSSL_INLINE void tile(Tile<P>& out, int i, int j) const {
    begun_ == nullptr ? clear<P>(out) : load_tile<P>(tile_at<P>(begun_, i, j), out);
    multiply<P, 1, kBlock>(out, rows_ + i, columns_ + j, kBlock, left_);
  }

 private:
  // A step reads a cache line of each side: 8 KB of both.
  static constexpr std::int64_t kDepth = 512 / static_cast<std::int64_t>(sizeof(Unit));

  // Out of line: what calls it has its registers full.
  static __attribute__((noinline)) void multiply_part(const Unit* rows, const Unit* columns, int height,
                                                      int width, bool first, Real* sums) {
    for (int j = 0; j < width; j += P::kCols) {
      for (int i = 0; i < height; i += P::kRows) {
        Tile<P> sum;
        Real* so_far = tile_at<P>(sums, i, j);
        first ? clear<P>(sum) : load_tile<P>(so_far, sum);
        multiply<P, 1, kBlock>(sum, rows + i, columns + j, kBlock, kDepth);
        store_tile<P>(so_far, sum);
      }
    }
  }

  const Unit *rows_, *columns_;
  std::int64_t left_;  // steps that are not in the sums
  const Real* begun_;  // the sums so far, or null
};

// out[r][:] += the product, for one tile of a gradient in memory. What is there is added last: the loop need
// not wait for it.
template <class P, int kAStride, int kAStep>
FASTSSL_INLINE void multiply_into(typename P::Real* out, std::int64_t out_stride, const typename P::Unit* a,
                                  const typename P::Unit* b, std::int64_t b_stride, std::int64_t steps) {
  Tile<P> acc;
  clear<P>(acc);
  multiply<P, kAStride, kAStep>(acc, a, b, b_stride, steps);
  FASTSSL_UNROLL
  for (int r = 0; r < P::kRows; ++r) {
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) {
      typename P::Real* at = out + v * P::kLanes;
      P::store(at, P::load(at) + acc[r][v]);
    }
    out += out_stride;
  }
}

// The same tile, one vector wide.
template <class P>
struct OneVector : P {
  static constexpr int kVectors = 1, kCols = P::kLanes;
};

// The same for kRows rows of a gradient, `cols` wide: tile by tile, the last one narrow where that is enough.
// b: [tiles of columns][kBlock / kFold][kCols], so that a tile reads one piece of memory.
template <class P, int kAStride, int kAStep>
FASTSSL_INLINE void multiply_strip(typename P::Real* out, std::int64_t out_stride, const typename P::Unit* a,
                                   const typename P::Unit* b, std::int64_t steps, std::int64_t cols) {
  constexpr std::int64_t kRowsOfB = kBlock / P::kFold;
  std::int64_t d = 0;
  for (; cols - d > P::kLanes; d += P::kCols)
    multiply_into<P, kAStride, kAStep>(out + d, out_stride, a, b + d * kRowsOfB, P::kCols, steps);
  if (d < cols)
    multiply_into<OneVector<P>, kAStride, kAStep>(out + d, out_stride, a, b + d * kRowsOfB, P::kCols, steps);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
