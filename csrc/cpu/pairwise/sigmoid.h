// The loss of SigLIP: each pair is a yes or a no of its own, so that loss and gradient come from one product.
//   loss = weight sum_ij log(1 + exp(-+ x_ij)),  x_ij = s c_ij + bias, minus where the pair matches
#pragma once

#include "products.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class Sigmoid {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Ints = typename P::Ints;
  using Weights = typename P::Weights;

  // gradient: whether there is one to compute; pass has the operands' rows then. both: of the columns too.
  Sigmoid(const Pass<P>& pass, double bias, double weight, bool gradient, bool both, int threads,
          Arena& arena)
      : pass_(pass),
        weight_(weight),
        gradient_(gradient),
        both_(both),
        base_(static_cast<Real>(-bias * kLog2e)),
        tournament_(pass.places(true), threads, arena),
        weights_(arena.take<Weights>(threads)),
        loss_(arena.take<double>(pass.q.padded)),
        bias_terms_(arena.take<double>(pass.q.padded)),
        products_(pass, both, gradient ? 1 : 0, weight, arena) {}

  // Before accumulate(), for each place.
  void reset(std::int64_t place) const {
    tournament_.reset(place);
    if (both_ || pass_.is_row(place)) products_.reset(place);
    if (!pass_.is_row(place)) return;
    for (std::int64_t i = place * kBlock; i < (place + 1) * kBlock; ++i) loss_[i] = bias_terms_[i] = 0;
  }

  void accumulate(Team& team) const {
    const Mask<P> mask = pass_.mask();
    Weights& w = weights_[team.thread()];
    pass_.play(tournament_, team,
               [&](std::int64_t a, std::int64_t b, bool) { block(mask, w, pass_.scratch_of(team), a, b); });
  }

  // After accumulate(): the loss, and its derivative with respect to the bias.
  Real loss() const { return total(loss_); }
  Real bias_gradient() const { return total(bias_terms_); }
  // finish() for each place, and the derivative with respect to s.
  const Products<P>& products() const { return products_; }

 private:
  // Of rows in their order, whatever thread they were on.
  Real total(const double* rows) const {
    double sum = 0;
    for (std::int64_t i = 0; i < pass_.problem.rows; ++i) sum += rows[i];
    return static_cast<Real>(weight_ * sum);
  }

  void block(const Mask<P>& mask, Weights& w, Real* scratch, std::int64_t a, std::int64_t b) const {
    const PairwiseProblem& p = pass_.problem;
    const int height = tiles_extent(a, p.rows, P::kRows), width = tiles_extent(b, p.cols, P::kCols);
    const BlockProduct<P> similarities = pass_.product(a, b, height, width, scratch);
    Vec loss[kBlock], slope[kBlock];
    for (int i = 0; i < height; ++i) loss[i] = slope[i] = Vec{};
    for (int j = 0; j < width; j += P::kCols) {
      for (int i = 0; i < height; i += P::kRows) {
        mask.touches(a * kBlock + i, b * kBlock + j)
            ? tile<true>(mask, w, loss, slope, a, b, i, j, similarities)
            : tile<false>(mask, w, loss, slope, a, b, i, j, similarities);
      }
    }
    for (int i = 0; i < height; ++i) {
      loss_[a * kBlock + i] += P::sum(loss[i]);
      bias_terms_[a * kBlock + i] += P::sum(slope[i]);
    }
    if (gradient_) products_.add(w, a, b, 0, both_);
  }

  template <bool kMasked>
  __attribute__((noinline)) void tile(const Mask<P>& mask, Weights& w, Vec* loss, Vec* slope, std::int64_t a,
                                      std::int64_t b, int i, int j,
                                      const BlockProduct<P>& similarities) const {
    Tile<P> g;
    similarities.tile(g, i, j);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints valid[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(a * kBlock + i + r, b * kBlock + j, valid, matched);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        const Vec x = pass_.exponent(g[r][v], base_);  // of a yes, in base 2
        const Vec small = P::exp2_any(x < 0 ? x : -x);
        const Vec larger = 1 / (1 + small), smaller = small * larger;
        Vec against = x;  // what is true weighs for the loss
        Vec weight = x < 0 ? smaller : larger;
        if (kMasked) {
          against = matched[v] ? -x : x;
          weight = matched[v] ? -(x < 0 ? larger : smaller) : weight;
        }
        Vec term = (against < 0 ? Vec{} : against) * static_cast<Real>(kLn2) + P::log1p_of_unit(small);
        if (kMasked) {
          term = valid[v] ? term : Vec{};
          weight = valid[v] ? weight : Vec{};
        }
        loss[i + r] += term;
        slope[i + r] += weight;
        g[r][v] = weight;
      }
    }
    if (gradient_) P::store_weights(w, i, j, g, both_);
  }

  const Pass<P>& pass_;
  double weight_;
  bool gradient_, both_;
  Real base_;
  Tournament tournament_;
  Weights* weights_;    // [threads]
  double* loss_;        // [padded rows]
  double* bias_terms_;  // [padded rows]: sum_j G_ij
  Products<P> products_;
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
