// The gradient for the rows: each block of G = d loss / d x is formed from recomputed similarities and
// multiplied into the gradient at once. dq^ = s G k^; where rows and columns are the same, G^T is multiplied
// from the same block.
#pragma once

#include "kept.h"
#include "pass.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// One side's weights, zero where a term is absent and past the end.
//   fixed shift: G = exp2(x' - shift) (a_i + b_j), factor = weight exp(shift - lse); one exponential
//   online:      G = w_i exp2(x' - l_i) + w_j exp2(x' - l_j), factor = weight, log2_sum = lse log2(e)
template <class P>
struct Terms {
  using Real = typename P::Real;

  const GradTerms& given;
  std::int64_t count;
  Real* factor;
  Real* log2_sum = nullptr;
  Real* positive;

  Terms(const GradTerms& terms, std::int64_t rows, std::int64_t padded, bool fixed_shift, Arena& arena)
      : given(terms), count(rows), factor(arena.take<Real>(padded)), positive(arena.take<Real>(padded)) {
    if (!fixed_shift) log2_sum = arena.take<Real>(padded);
  }

  void prepare(std::int64_t block, double shift) const {
    const auto* lse = static_cast<const Real*>(given.lse);
    const auto* weight = static_cast<const Real*>(given.weight);
    const auto* positive_weight = static_cast<const Real*>(given.positive_weight);
    for (std::int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i) {
      const bool present = i < count && lse != nullptr;
      // A log-sum of -inf belongs to a row without any pair: no term, and no infinity times zero.
      const bool empty = !present || lse[i] == -__builtin_inf();
      positive[i] = i < count && positive_weight != nullptr ? positive_weight[i] : 0;
      factor[i] = empty ? 0 : weight[i];
      if (log2_sum != nullptr) {
        log2_sum[i] = empty ? static_cast<Real>(__builtin_inf()) : static_cast<Real>(lse[i] * kLog2e);
      } else if (!empty) {
        factor[i] = static_cast<Real>(weight[i] * __builtin_exp(shift - lse[i]));
      }
    }
  }
};

template <class P>
class Gradient {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Ints = typename P::Ints;
  using Weights = typename P::Weights;

  // kept: exponentials that need not be computed again, or null.
  Gradient(const Pass<P>& pass, const GradTerms& row, const GradTerms& col, const Kept<P>* kept, int threads,
           Arena& arena)
      : pass_(pass),
        kept_(kept),
        tournament_(pass.q.blocks, threads, arena),
        rectangle_(pass.q.blocks, pass.k.blocks),
        parts_(pass.problem.symmetric ? 1 : rectangle_.chunks),
        stride_(pass.q.row_stride),
        row_(row, pass.problem.rows, pass.q.padded, pass.fixed_shift, arena),
        col_(pass.problem.symmetric
                 ? row_
                 : Terms<P>(col, pass.problem.cols, pass.k.padded, pass.fixed_shift, arena)),
        weights_(arena.take<Weights>(threads)),
        grad_(arena.take<Real>(parts_ * pass.q.padded * stride_)),
        scale_terms_(arena.take<double>(pass.problem.rows)) {}

  // Before accumulate(), for each block of rows and of columns. The terms' log-sums must be there.
  void prepare_rows(std::int64_t b) const { row_.prepare(b, pass_.shift * kLn2); }  // as rounded in the tiles
  void prepare_cols(std::int64_t b) const {
    if (!pass_.problem.symmetric) col_.prepare(b, pass_.shift * kLn2);
  }
  void reset(std::int64_t b) const {
    tournament_.reset(b);
    for (std::int64_t part = 0; part < parts_; ++part) {
      __builtin_memset(grad_block(part, b), 0, static_cast<std::size_t>(kBlock * stride_) * sizeof(Real));
    }
  }

  void accumulate(Team& team) const {
    const Mask<P> mask = pass_.mask();
    Weights& w = weights_[team.thread()];
    if (pass_.problem.symmetric) {
      tournament_.play(team, [&](std::int64_t a, std::int64_t b) { block(mask, w, a, b, 0, a != b); });
    } else {
      rectangle_.run(team, [&](std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1) {
        for (std::int64_t b = b0; b < b1; ++b) block(mask, w, a, b, part, false);
      });
    }
  }

  // After accumulate(): adds up the parts of block b's rows, goes back through the normalisation and writes
  // dq.
  void finish(std::int64_t b, Real* scratch, const Rows& dq) const {
    const PairwiseProblem& p = pass_.problem;
    const std::int64_t dim = p.dim, padded_dim = round_up(dim, P::kCols);
    const std::int64_t end = (b + 1) * kBlock < p.rows ? (b + 1) * kBlock : p.rows;
    const Real clamped = 1 / Operand<P>::kSmallestNorm;
    const Real scale = static_cast<Real>(p.scale);
    for (std::int64_t i = b * kBlock; i < end; ++i) {
      Real* unit = scratch;  // q^_i from the input: not rounded to bfloat16
      Real* grad = grad_ + i * stride_;
      const Real inverse = pass_.q.read_normalised(i, unit);
      for (std::int64_t part = 1; part < parts_; ++part) {
        const Real* more = grad + part * pass_.q.padded * stride_;
        for (std::int64_t d = 0; d < padded_dim; d += P::kLanes)
          P::store(grad + d, P::load(grad + d) + P::load(more + d));
      }
      Vec along{};
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes) along += P::load(grad + d) * P::load(unit + d);
      const Real dot = P::sum(along);
      scale_terms_[i] = dot;
      // A norm below the smallest is a constant, as in torch.nn.functional.normalize: nothing to project out.
      const Real projected = p.normalize && inverse != clamped ? dot : 0;
      const Real factor = p.normalize ? scale * inverse : scale;
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes) {
        P::store(grad + d, (P::load(grad + d) - P::load(unit + d) * projected) * factor);
      }
      write_row(p.dtype, grad, dim, dq.row(i, p.dtype));
    }
  }

  // After finish(): the derivative with respect to s, added up in the order of the rows.
  Real scale_gradient() const {
    double sum = 0;
    for (std::int64_t i = 0; i < pass_.problem.rows; ++i) sum += scale_terms_[i];
    return static_cast<Real>(sum);
  }

 private:
  Real* grad_block(std::int64_t part, std::int64_t b) const {
    return grad_ + (part * pass_.q.padded + b * kBlock) * stride_;
  }

  void block(const Mask<P>& mask, Weights& w, std::int64_t a, std::int64_t b, std::int64_t part,
             bool cols_too) const {
    const PairwiseProblem& p = pass_.problem;
    const int height = tiles_extent(a, p.rows, P::kRows), width = tiles_extent(b, p.cols, P::kCols);
    Real* kept = kept_ == nullptr ? nullptr : kept_->block(a, b);
    for (int j = 0; j < width; j += P::kCols) {
      for (int i = 0; i < height; i += P::kRows) {
        const bool masked = mask.touches(a * kBlock + i, b * kBlock + j);
        if (kept != nullptr) {
          const Real* tile = Kept<P>::tile(kept, i, j);
          masked ? weights_tile<From::kKept, true>(mask, w, a, b, i, j, tile, cols_too)
                 : weights_tile<From::kKept, false>(mask, w, a, b, i, j, tile, cols_too);
        } else if (pass_.fixed_shift) {
          masked ? weights_tile<From::kFixed, true>(mask, w, a, b, i, j, nullptr, cols_too)
                 : weights_tile<From::kFixed, false>(mask, w, a, b, i, j, nullptr, cols_too);
        } else {
          masked ? weights_tile<From::kOnline, true>(mask, w, a, b, i, j, nullptr, cols_too)
                 : weights_tile<From::kOnline, false>(mask, w, a, b, i, j, nullptr, cols_too);
        }
      }
    }
    // G_a += W Z_b and G_b += W^T Z_a. A tile's rows of W stay in L1 while Z streams from L2: the other order
    // is 4 % slower.
    const std::int64_t z_stride = pass_.k.row_stride;
    Real* grad_a = grad_block(part, a);
    const auto* z_b = pass_.k.block_rows(b);
    for (int i = 0; i < height; i += P::kRows) {
      multiply_strip<P, Weights::kRowStride, Weights::kRowStep>(grad_a + i * stride_, stride_, w.rows(i), z_b,
                                                                z_stride, width / P::kFold, p.dim);
    }
    if (!cols_too) return;
    const int col_height = tiles_extent(b, p.cols, P::kRows);
    Real* grad_b = grad_block(part, b);
    const auto* z_a = pass_.q.block_rows(a);
    for (int j = 0; j < col_height; j += P::kRows) {
      multiply_strip<P, Weights::kColStride, Weights::kColStep>(grad_b + j * stride_, stride_, w.cols(j), z_a,
                                                                z_stride, height / P::kFold, p.dim);
    }
  }

  // Where a tile's exponentials come from: left by the log-sums, or recomputed with either shift.
  enum class From { kKept, kFixed, kOnline };

  template <From kFrom, bool kMasked>
  __attribute__((noinline)) void weights_tile(const Mask<P>& mask, Weights& w, std::int64_t a, std::int64_t b,
                                              int i, int j, const Real* kept, bool cols_too) const {
    const std::int64_t row = a * kBlock + i, col = b * kBlock + j;
    Tile<P> g;
    clear<P>(g);
    if (kFrom != From::kKept)
      multiply<P, 1, kBlock>(g, pass_.q.block(a) + i, pass_.k.block(b) + j, kBlock, pass_.k.steps);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints in_sum[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(row + r, col, in_sum, matched);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        const std::int64_t at = col + v * P::kLanes;
        Vec weight;
        if (kFrom == From::kOnline) {
          weight =
              P::exp2_any(pass_.exponent(g[r][v], row_.log2_sum[row + r])) * row_.factor[row + r] +
              P::exp2_any(pass_.exponent(g[r][v], P::load(col_.log2_sum + at))) * P::load(col_.factor + at);
        } else {
          const Vec e = kFrom == From::kKept ? P::load(kept + (r * P::kVectors + v) * P::kLanes)
                                             : P::exp2(pass_.exponent(g[r][v], pass_.shift));
          weight = e * (P::load(col_.factor + at) + row_.factor[row + r]);
        }
        if (kMasked) {
          // Folded in here, before bfloat16 weights are rounded: near a positive the two nearly cancel.
          const Vec positive = P::load(col_.positive + at) + row_.positive[row + r];
          weight = (in_sum[v] ? weight : Vec{}) + (matched[v] ? positive : Vec{});
        }
        g[r][v] = weight;
      }
    }
    P::store_weights(w, i, j, g, cols_too);
  }

  const Pass<P>& pass_;
  const Kept<P>* kept_;
  Tournament tournament_;
  Rectangle rectangle_;
  std::int64_t parts_;
  std::int64_t stride_;
  Terms<P> row_, col_;
  Weights* weights_;     // [threads]
  Real* grad_;           // [parts][padded rows][stride]: sum_j G_ij k^_j
  double* scale_terms_;  // [rows]: sum_j G_ij c_ij
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
