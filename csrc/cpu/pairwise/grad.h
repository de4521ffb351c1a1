// The gradient: each block of G = d loss / d x is formed from recomputed similarities and multiplied into the
// gradient at once.
#pragma once

#include "kept.h"
#include "products.h"

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

  // mutual: both sides want their gradient. kept: what need not be computed again, or null.
  Gradient(const Pass<P>& pass, const GradTerms& row, const GradTerms& col, bool mutual, const Kept<P>* kept,
           int threads, Arena& arena)
      : pass_(pass),
        kept_(kept),
        mutual_(mutual),
        tournament_(pass.places(mutual), threads, arena),
        rectangle_(pass.q.blocks, pass.k.blocks),
        row_(row, pass.problem.rows, pass.q.padded, pass.fixed_shift, arena),
        col_(pass.problem.symmetric
                 ? row_
                 : Terms<P>(col, pass.problem.cols, pass.k.padded, pass.fixed_shift, arena)),
        weights_(arena.take<Weights>(threads)),
        products_(pass, mutual, mutual ? 1 : rectangle_.chunks, 1, arena) {}

  // Before accumulate(), for each block of rows and of columns. The terms' log-sums must be there.
  void prepare_rows(std::int64_t b) const { row_.prepare(b, pass_.shift * kLn2); }  // as rounded in the tiles
  void prepare_cols(std::int64_t b) const {
    if (!pass_.problem.symmetric) col_.prepare(b, pass_.shift * kLn2);
  }
  // For each place.
  void reset(std::int64_t place) const {
    tournament_.reset(place);
    products_.reset(place);
  }

  void accumulate(Team& team) const {
    const Mask<P> mask = pass_.mask();
    Weights& w = weights_[team.thread()];
    Real* scratch = pass_.scratch_of(team);
    if (mutual_) {
      pass_.play(tournament_, team, [&](std::int64_t a, std::int64_t b, bool cols_too) {
        block(mask, w, scratch, a, b, 0, cols_too);
      });
    } else {
      rectangle_.run(team, [&](std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1) {
        for (std::int64_t b = b0; b < b1; ++b) block(mask, w, scratch, a, b, part, false);
      });
    }
  }

  // After accumulate(): finish() for each place, and the derivative with respect to s.
  const Products<P>& products() const { return products_; }

 private:
  void block(const Mask<P>& mask, Weights& w, Real* scratch, std::int64_t a, std::int64_t b,
             std::int64_t part, bool cols_too) const {
    const PairwiseProblem& p = pass_.problem;
    const int height = tiles_extent(a, p.rows, P::kRows), width = tiles_extent(b, p.cols, P::kCols);
    Real* kept = kept_ == nullptr ? nullptr : kept_->block(a, b);
    // Nothing is multiplied where it is kept.
    const BlockProduct<P> similarities = pass_.product(a, b, kept == nullptr ? height : 0, width, scratch);
    for (int j = 0; j < width; j += P::kCols) {
      for (int i = 0; i < height; i += P::kRows) {
        const bool masked = mask.touches(a * kBlock + i, b * kBlock + j);
        if (pass_.fixed_shift) {
          masked ? weights_tile<true, true>(mask, w, a, b, i, j, kept, similarities, cols_too)
                 : weights_tile<true, false>(mask, w, a, b, i, j, kept, similarities, cols_too);
        } else {
          masked ? weights_tile<false, true>(mask, w, a, b, i, j, kept, similarities, cols_too)
                 : weights_tile<false, false>(mask, w, a, b, i, j, kept, similarities, cols_too);
        }
      }
    }
    products_.add(w, a, b, part, cols_too);
  }

  template <bool kFixed, bool kMasked>
  __attribute__((noinline)) void weights_tile(const Mask<P>& mask, Weights& w, std::int64_t a, std::int64_t b,
                                              int i, int j, Real* kept, const BlockProduct<P>& similarities,
                                              bool cols_too) const {
    const std::int64_t row = a * kBlock + i, col = b * kBlock + j;
    Tile<P> g;
    if (kept != nullptr) {
      load_tile<P>(tile_at<P>(kept, i, j), g);
    } else {
      similarities.tile(g, i, j);
    }
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints in_sum[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(row + r, col, in_sum, matched);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        const std::int64_t at = col + v * P::kLanes;
        Vec weight;
        if (kFixed) {
          const Vec e = kept != nullptr ? g[r][v] : P::exp2(pass_.exponent(g[r][v], pass_.shift));
          weight = e * (P::load(col_.factor + at) + row_.factor[row + r]);
        } else {
          weight =
              P::exp2_any(pass_.exponent(g[r][v], row_.log2_sum[row + r])) * row_.factor[row + r] +
              P::exp2_any(pass_.exponent(g[r][v], P::load(col_.log2_sum + at))) * P::load(col_.factor + at);
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
  bool mutual_;
  Tournament tournament_;
  Rectangle rectangle_;
  Terms<P> row_, col_;
  Weights* weights_;  // [threads]
  Products<P> products_;
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
