// Log-sums and positives: each tile of similarities is turned into sums while it is still in registers.
#pragma once

#include "kept.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// Sums of a pair of blocks, a vector of lanes per row: lanes are added up once per block, not per tile.
template <class P>
struct RowSums {
  typename P::Vec sum[kBlock];       // of 2^(x log2(e) - maximum), or of 2^(x log2(e) - |s| log2(e))
  typename P::Vec maximum[kBlock];   // online only
  typename P::Vec positive[kBlock];  // of c over matched pairs
};

template <class P>
class LogSums {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Ints = typename P::Ints;

  // mutual: both sides get their sums, from the same products. kept: where goes what the gradient will want,
  // or null.
  LogSums(const Pass<P>& pass, bool mutual, const Kept<P>* kept, int threads, Arena& arena)
      : pass_(pass),
        kept_(kept),
        mutual_(mutual),
        tournament_(pass.places(mutual), threads, arena),
        rectangle_(pass.q.blocks, pass.k.blocks),
        parts_(mutual ? 1 : rectangle_.chunks),
        stride_(pass.places(mutual) * kBlock),
        row_sums_(arena.take<RowSums<P>>(threads)),
        sum_(arena.take<Real>(parts_ * stride_)),
        positive_(arena.take<Real>(parts_ * stride_)),
        maximum_(pass.fixed_shift ? nullptr : arena.take<Real>(parts_ * stride_)) {}

  // Before accumulate(), for each place.
  void reset(std::int64_t place) const {
    tournament_.reset(place);
    for (std::int64_t part = 0; part < parts_; ++part) {
      const std::int64_t first = part * stride_ + place * kBlock;
      for (std::int64_t i = first; i < first + kBlock; ++i) {
        sum_[i] = positive_[i] = 0;
        if (maximum_ != nullptr) maximum_[i] = kLowest;
      }
    }
  }

  void accumulate(Team& team) const {
    RowSums<P>& mine = row_sums_[team.thread()];
    Real* scratch = pass_.scratch_of(team);
    const Mask<P> mask = pass_.mask();
    const auto block = [&](std::int64_t a, std::int64_t b, std::int64_t part, bool cols_too) {
      pass_.fixed_shift ? fixed_block(mask, mine, scratch, a, b, part, cols_too)
                        : online_block(mask, mine, scratch, a, b, part, cols_too);
    };
    if (mutual_) {
      pass_.play(tournament_, team,
                 [&](std::int64_t a, std::int64_t b, bool cols_too) { block(a, b, 0, cols_too); });
    } else {
      rectangle_.run(team, [&](std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1) {
        for (std::int64_t b = b0; b < b1; ++b) block(a, b, part, false);
      });
    }
  }

  // After accumulate(): adds up the parts of a place's rows and writes them out, the first of them to
  // row_lse[0] and, unless that is null, positive[0].
  void finish(std::int64_t place, Real* row_lse, Real* positive) const {
    const std::int64_t first = place * kBlock, count = pass_.valid_at(place);
    for (std::int64_t i = first; i < first + count; ++i) {
      double base = pass_.shift, sum = 0, matched = 0;
      if (!pass_.fixed_shift) {
        base = maximum_[i];
        for (std::int64_t part = 1; part < parts_; ++part) {
          const double m = maximum_[part * stride_ + i];
          base = m > base ? m : base;
        }
      }
      for (std::int64_t part = 0; part < parts_; ++part) {
        const std::int64_t at = part * stride_ + i;
        sum += pass_.fixed_shift ? sum_[at] : sum_[at] * __builtin_exp2(maximum_[at] - base);
        matched += positive_[at];
      }
      // An empty set sums to exactly 0, and its log is -inf whatever the shift.
      row_lse[i - first] = static_cast<Real>(base * kLn2 + __builtin_log(sum));
      if (positive != nullptr) positive[i - first] = static_cast<Real>(pass_.problem.scale * matched);
    }
  }

 private:
  // Where the sums of column block b start, which have one part.
  std::int64_t col_place(std::int64_t b) const { return (pass_.first_col_place() + b) * kBlock; }

  // Row sums of block (a, b), and with cols_too its column sums, added to part `part` of the totals.
  void fixed_block(const Mask<P>& mask, RowSums<P>& rows, Real* scratch, std::int64_t a, std::int64_t b,
                   std::int64_t part, bool cols_too) const {
    const int height = tiles_extent(a, pass_.problem.rows, P::kRows),
              width = tiles_extent(b, pass_.problem.cols, P::kCols);
    Real* keep = kept_ == nullptr ? nullptr : kept_->block(a, b);
    const BlockProduct<P> similarities = pass_.product(a, b, height, width, scratch);
    for (int i = 0; i < height; ++i) rows.sum[i] = rows.positive[i] = Vec{};
    bool any_masked = false;  // elsewhere there are no positives
    for (int j = 0; j < width; j += P::kCols) {
      Vec col_sum[P::kVectors] = {}, col_positive[P::kVectors] = {};
      for (int i = 0; i < height; i += P::kRows) {
        const std::int64_t row = a * kBlock + i, col = b * kBlock + j;
        if (mask.touches(row, col)) {
          any_masked = true;
          fixed_tile<true>(mask, rows, a, b, i, j, similarities, keep, col_sum, col_positive);
        } else {
          fixed_tile<false>(mask, rows, a, b, i, j, similarities, keep, col_sum, col_positive);
        }
      }
      if (!cols_too) continue;
      for (int v = 0; v < P::kVectors; ++v) {
        const std::int64_t col = col_place(b) + j + v * P::kLanes;
        P::store(sum_ + col, P::load(sum_ + col) + col_sum[v]);
        if (any_masked) P::store(positive_ + col, P::load(positive_ + col) + col_positive[v]);
      }
    }
    for (int i = 0; i < height; ++i) {
      const std::int64_t row = part * stride_ + a * kBlock + i;
      sum_[row] += P::sum(rows.sum[i]);
      if (any_masked) positive_[row] += P::sum(rows.positive[i]);
    }
  }

  template <bool kMasked>
  FASTSSL_INLINE void fixed_tile(const Mask<P>& mask, RowSums<P>& rows, std::int64_t a, std::int64_t b, int i,
                                 int j, const BlockProduct<P>& similarities, Real* keep,
                                 Vec (&col_sum)[P::kVectors], Vec (&col_positive)[P::kVectors]) const {
    Tile<P> c;
    similarities.tile(c, i, j);
    Real* kept = keep == nullptr ? nullptr : tile_at<P>(keep, i, j);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints in_sum[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(a * kBlock + i + r, b * kBlock + j, in_sum, matched);
      Vec sum = rows.sum[i + r];
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        Vec e = P::exp2(pass_.exponent(c[r][v], pass_.shift));
        if (kMasked) {
          e = in_sum[v] ? e : Vec{};
          const Vec match = matched[v] ? c[r][v] : Vec{};
          rows.positive[i + r] += match;
          col_positive[v] += match;
        }
        if (kept != nullptr) P::store(kept + (r * P::kVectors + v) * P::kLanes, e);
        sum += e;
        col_sum[v] += e;
      }
      rows.sum[i + r] = sum;
    }
  }

  // The same with a maximum per row and lane of this block, and one per column: what is added up has the
  // totals' larger one.
  void online_block(const Mask<P>& mask, RowSums<P>& rows, Real* scratch, std::int64_t a, std::int64_t b,
                    std::int64_t part, bool cols_too) const {
    const int height = tiles_extent(a, pass_.problem.rows, P::kRows),
              width = tiles_extent(b, pass_.problem.cols, P::kCols);
    Real* keep = kept_ == nullptr ? nullptr : kept_->block(a, b);
    const BlockProduct<P> similarities = pass_.product(a, b, height, width, scratch);
    for (int i = 0; i < height; ++i) {
      rows.sum[i] = rows.positive[i] = Vec{};
      rows.maximum[i] = P::broadcast(kLowest);
    }
    for (int j = 0; j < width; j += P::kCols) {
      ColSums cols;
      for (int v = 0; v < P::kVectors; ++v) {
        cols.sum[v] = cols.positive[v] = Vec{};
        cols.maximum[v] = P::broadcast(kLowest);
      }
      for (int i = 0; i < height; i += P::kRows) {
        const bool masked = mask.touches(a * kBlock + i, b * kBlock + j);
        if (cols_too) {
          masked ? online_tile<true, true>(mask, rows, cols, a, b, i, j, similarities, keep)
                 : online_tile<false, true>(mask, rows, cols, a, b, i, j, similarities, keep);
        } else {
          masked ? online_tile<true, false>(mask, rows, cols, a, b, i, j, similarities, keep)
                 : online_tile<false, false>(mask, rows, cols, a, b, i, j, similarities, keep);
        }
      }
      if (!cols_too) continue;
      for (int v = 0; v < P::kVectors; ++v) {
        const std::int64_t col = col_place(b) + j + v * P::kLanes;
        const Vec before = P::load(maximum_ + col), maximum = P::max(cols.maximum[v], before);
        P::store(sum_ + col, P::load(sum_ + col) * P::exp2(before - maximum) +
                                 cols.sum[v] * P::exp2(cols.maximum[v] - maximum));
        P::store(maximum_ + col, maximum);
        P::store(positive_ + col, P::load(positive_ + col) + cols.positive[v]);
      }
    }
    for (int i = 0; i < height; ++i) {
      const std::int64_t row = part * stride_ + a * kBlock + i;
      const Real before = maximum_[row], here = P::largest(rows.maximum[i]);
      const Real maximum = here > before ? here : before;
      const Real sum = P::sum(rows.sum[i] * P::exp2(rows.maximum[i] - maximum));
      sum_[row] = sum_[row] * P::exp2(P::broadcast(before - maximum))[0] + sum;
      maximum_[row] = maximum;
      positive_[row] += P::sum(rows.positive[i]);
    }
  }

  // As RowSums, of the columns of a tile.
  struct ColSums {
    Vec sum[P::kVectors], maximum[P::kVectors], positive[P::kVectors];
  };

  template <bool kMasked, bool kColsToo>
  __attribute__((noinline)) void online_tile(const Mask<P>& mask, RowSums<P>& rows, ColSums& cols,
                                             std::int64_t a, std::int64_t b, int i, int j,
                                             const BlockProduct<P>& similarities, Real* keep) const {
    Tile<P> c;
    similarities.tile(c, i, j);
    if (keep != nullptr) store_tile<P>(tile_at<P>(keep, i, j), c);
    Ints in_sum[P::kRows][P::kVectors];
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints matched[P::kVectors];
      if (kMasked) mask.row(a * kBlock + i + r, b * kBlock + j, in_sum[r], matched);
      Vec x[P::kVectors];
      Vec maximum = rows.maximum[i + r];
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        x[v] = c[r][v] * pass_.slope;
        if (kMasked) {
          const Vec match = matched[v] ? c[r][v] : Vec{};
          rows.positive[i + r] += match;
          if (kColsToo) cols.positive[v] += match;
          // before the maximum: an excluded pair must not raise it
          x[v] = in_sum[r][v] ? x[v] : P::broadcast(kLowest);
        }
        maximum = P::max(x[v], maximum);
      }
      Vec sum = rows.sum[i + r] * P::exp2(rows.maximum[i + r] - maximum);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        const Vec e = P::exp2(pass_.exponent(c[r][v], maximum));
        sum += kMasked ? (in_sum[r][v] ? e : Vec{}) : e;
      }
      rows.sum[i + r] = sum;
      rows.maximum[i + r] = maximum;
    }
    if (!kColsToo) return;
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) {
      Vec maximum = cols.maximum[v];
      FASTSSL_UNROLL
      for (int r = 0; r < P::kRows; ++r) {
        const Vec x = c[r][v] * pass_.slope;
        maximum = P::max(kMasked ? (in_sum[r][v] ? x : P::broadcast(kLowest)) : x, maximum);
      }
      Vec sum = cols.sum[v] * P::exp2(cols.maximum[v] - maximum);
      FASTSSL_UNROLL
      for (int r = 0; r < P::kRows; ++r) {
        const Vec e = P::exp2(pass_.exponent(c[r][v], maximum));
        sum += kMasked ? (in_sum[r][v] ? e : Vec{}) : e;
      }
      cols.sum[v] = sum;
      cols.maximum[v] = maximum;
    }
  }

  static constexpr Real kLowest =
      sizeof(Real) == 4 ? static_cast<Real>(-3.4e38) : static_cast<Real>(-1.7e308);

  const Pass<P>& pass_;
  const Kept<P>* kept_;
  bool mutual_;
  Tournament tournament_;
  Rectangle rectangle_;
  std::int64_t parts_, stride_;  // stride: rows of all places
  RowSums<P>* row_sums_;
  Real* sum_;       // [parts][stride]
  Real* positive_;  // [parts][stride], in units of c
  Real* maximum_;   // [parts][stride], online only
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
