// Log-sums and positives: each tile of similarities is turned into sums while it is still in registers.
#pragma once

#include "kept.h"
#include "pass.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// Running sums of one block of rows, a vector of lanes per row: lanes are added up once per block, not per
// tile.
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

  // kept: where exponentials go that the gradient will want, or null.
  LogSums(const Pass<P>& pass, const Kept<P>* kept, int threads, Arena& arena)
      : pass_(pass),
        kept_(kept),
        tournament_(pass.q.blocks, threads, arena),
        rectangle_(pass.q.blocks, pass.k.blocks),
        symmetric_(pass.problem.symmetric && pass.fixed_shift),
        parts_(symmetric_ ? 1 : rectangle_.chunks),
        row_sums_(arena.take<RowSums<P>>(threads)),
        sum_(arena.take<Real>(parts_ * pass.q.padded)),
        positive_(arena.take<Real>(parts_ * pass.q.padded)),
        maximum_(pass.fixed_shift ? nullptr : arena.take<Real>(parts_ * pass.q.padded)) {}

  // Before accumulate(), for each block of rows.
  void reset(std::int64_t b) const {
    tournament_.reset(b);
    for (std::int64_t part = 0; part < parts_; ++part) {
      const std::int64_t first = part * pass_.q.padded + b * kBlock;
      for (std::int64_t i = first; i < first + kBlock; ++i) sum_[i] = positive_[i] = 0;
    }
  }

  void accumulate(Team& team) const {
    RowSums<P>& mine = row_sums_[team.thread()];
    const Mask<P> mask = pass_.mask();
    if (symmetric_) {
      tournament_.play(team,
                       [&](std::int64_t a, std::int64_t b) { fixed_block(mask, mine, a, b, 0, a != b); });
    } else {
      rectangle_.run(team, [&](std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1) {
        if (pass_.fixed_shift) {
          for (std::int64_t b = b0; b < b1; ++b) fixed_block(mask, mine, a, b, part, false);
        } else {
          online_blocks(mask, mine, a, b0, b1, part);
        }
      });
    }
  }

  // After accumulate(): adds up the parts of block b's rows and writes them out.
  void finish(std::int64_t b, Real* row_lse, Real* positive) const {
    const std::int64_t end = (b + 1) * kBlock < pass_.problem.rows ? (b + 1) * kBlock : pass_.problem.rows;
    for (std::int64_t i = b * kBlock; i < end; ++i) {
      double base = pass_.shift, sum = 0, matched = 0;
      if (!pass_.fixed_shift) {
        base = maximum_[i];
        for (std::int64_t part = 1; part < parts_; ++part) {
          const double m = maximum_[part * pass_.q.padded + i];
          base = m > base ? m : base;
        }
      }
      for (std::int64_t part = 0; part < parts_; ++part) {
        const std::int64_t at = part * pass_.q.padded + i;
        sum += pass_.fixed_shift ? sum_[at] : sum_[at] * __builtin_exp2(maximum_[at] - base);
        matched += positive_[at];
      }
      // An empty set sums to exactly 0, and its log is -inf whatever the shift.
      row_lse[i] = static_cast<Real>(base * kLn2 + __builtin_log(sum));
      positive[i] = static_cast<Real>(pass_.problem.scale * matched);
    }
  }

 private:
  // Row sums of block (a, b), and with cols_too its column sums, added to part `part` of the totals.
  void fixed_block(const Mask<P>& mask, RowSums<P>& rows, std::int64_t a, std::int64_t b, std::int64_t part,
                   bool cols_too) const {
    const int height = tiles_extent(a, pass_.problem.rows, P::kRows),
              width = tiles_extent(b, pass_.problem.cols, P::kCols);
    Real* keep = kept_ == nullptr ? nullptr : kept_->block(a, b);
    for (int i = 0; i < height; ++i) rows.sum[i] = rows.positive[i] = Vec{};
    bool any_masked = false;  // elsewhere there are no positives
    for (int j = 0; j < width; j += P::kCols) {
      Vec col_sum[P::kVectors] = {}, col_positive[P::kVectors] = {};
      for (int i = 0; i < height; i += P::kRows) {
        const std::int64_t row = a * kBlock + i, col = b * kBlock + j;
        if (mask.touches(row, col)) {
          any_masked = true;
          fixed_tile<true>(mask, rows, a, b, i, j, keep, col_sum, col_positive);
        } else {
          fixed_tile<false>(mask, rows, a, b, i, j, keep, col_sum, col_positive);
        }
      }
      if (!cols_too) continue;
      for (int v = 0; v < P::kVectors; ++v) {
        const std::int64_t col = part * pass_.q.padded + b * kBlock + j + v * P::kLanes;
        P::store(sum_ + col, P::load(sum_ + col) + col_sum[v]);
        if (any_masked) P::store(positive_ + col, P::load(positive_ + col) + col_positive[v]);
      }
    }
    for (int i = 0; i < height; ++i) {
      const std::int64_t row = part * pass_.q.padded + a * kBlock + i;
      sum_[row] += P::sum(rows.sum[i]);
      if (any_masked) positive_[row] += P::sum(rows.positive[i]);
    }
  }

  template <bool kMasked>
  FASTSSL_INLINE void fixed_tile(const Mask<P>& mask, RowSums<P>& rows, std::int64_t a, std::int64_t b, int i,
                                 int j, Real* keep, Vec (&col_sum)[P::kVectors],
                                 Vec (&col_positive)[P::kVectors]) const {
    Tile<P> c;
    similarities(c, a, b, i, j);
    Real* kept = keep == nullptr ? nullptr : Kept<P>::tile(keep, i, j);
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

  // All of row block a against the column blocks [b0, b1) with a running maximum per lane.
  void online_blocks(const Mask<P>& mask, RowSums<P>& rows, std::int64_t a, std::int64_t b0, std::int64_t b1,
                     std::int64_t part) const {
    const int height = tiles_extent(a, pass_.problem.rows, P::kRows);
    Vec total[kBlock];
    for (int i = 0; i < height; ++i) {
      rows.positive[i] = total[i] = Vec{};
      rows.maximum[i] = P::broadcast(kLowest);
    }
    for (std::int64_t b = b0; b < b1; ++b) {
      // Sums start afresh in each block, so that many columns lose no accuracy; the maximum goes on.
      Vec before[kBlock];
      for (int i = 0; i < height; ++i) {
        before[i] = rows.maximum[i];
        rows.sum[i] = Vec{};
      }
      const int width = tiles_extent(b, pass_.problem.cols, P::kCols);
      for (int j = 0; j < width; j += P::kCols) {
        for (int i = 0; i < height; i += P::kRows) {
          if (mask.touches(a * kBlock + i, b * kBlock + j)) {
            online_tile<true>(mask, rows, a, b, i, j);
          } else {
            online_tile<false>(mask, rows, a, b, i, j);
          }
        }
      }
      for (int i = 0; i < height; ++i)
        total[i] = total[i] * P::exp2(before[i] - rows.maximum[i]) + rows.sum[i];
    }
    for (int i = 0; i < height; ++i) {
      const std::int64_t row = part * pass_.q.padded + a * kBlock + i;
      Real maximum = kLowest;
      for (int lane = 0; lane < P::kLanes; ++lane)
        maximum = rows.maximum[i][lane] > maximum ? rows.maximum[i][lane] : maximum;
      maximum_[row] = maximum;
      sum_[row] = P::sum(total[i] * P::exp2(rows.maximum[i] - maximum));
      positive_[row] = P::sum(rows.positive[i]);
    }
  }

  template <bool kMasked>
  FASTSSL_INLINE void online_tile(const Mask<P>& mask, RowSums<P>& rows, std::int64_t a, std::int64_t b,
                                  int i, int j) const {
    Tile<P> c;
    similarities(c, a, b, i, j);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints in_sum[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(a * kBlock + i + r, b * kBlock + j, in_sum, matched);
      Vec x[P::kVectors];
      Vec maximum = rows.maximum[i + r];
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        x[v] = c[r][v] * pass_.slope;
        if (kMasked) {
          rows.positive[i + r] += matched[v] ? c[r][v] : Vec{};
          x[v] = in_sum[v] ? x[v]
                           : P::broadcast(kLowest);  // before the maximum: an excluded pair must not raise it
        }
        maximum = P::max(x[v], maximum);
      }
      Vec sum = rows.sum[i + r] * P::exp2(rows.maximum[i + r] - maximum);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        const Vec e = P::exp2(pass_.exponent(c[r][v], maximum));
        sum += kMasked ? (in_sum[v] ? e : Vec{}) : e;
      }
      rows.sum[i + r] = sum;
      rows.maximum[i + r] = maximum;
    }
  }

  FASTSSL_INLINE void similarities(Tile<P>& c, std::int64_t a, std::int64_t b, int i, int j) const {
    clear<P>(c);
    multiply<P, 1, kBlock>(c, pass_.q.block(a) + i, pass_.k.block(b) + j, kBlock, pass_.k.steps);
  }

  static constexpr Real kLowest =
      sizeof(Real) == 4 ? static_cast<Real>(-3.4e38) : static_cast<Real>(-1.7e308);

  const Pass<P>& pass_;
  const Kept<P>* kept_;
  Tournament tournament_;
  Rectangle rectangle_;
  bool symmetric_;
  std::int64_t parts_;
  RowSums<P>* row_sums_;
  Real* sum_;       // [parts][padded rows]
  Real* positive_;  // [parts][padded rows], in units of c
  Real* maximum_;   // [parts][padded rows], online only
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
