// What a block of weights G = d loss / d x is multiplied into, and the way back to the inputs:
//   dq^ = factor s G k^ and, where both sides want it, dk^ = factor s G^T q^.
#pragma once

#include "pass.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class Products {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Weights = typename P::Weights;

  // mutual: both sides get a gradient. parts: results per row block, added up in finish().
  Products(const Pass<P>& pass, bool mutual, std::int64_t parts, double factor, Arena& arena)
      : pass_(pass),
        parts_(parts),
        rows_(pass.places(mutual) * kBlock),
        stride_(pass.q.row_stride),
        factor_(factor),
        grad_(arena.take<Real>(parts * rows_ * stride_)),
        scale_terms_(arena.take<double>(rows_)) {}

  // Before add(), for each place that gets a gradient.
  void reset(std::int64_t place) const {
    for (std::int64_t part = 0; part < parts_; ++part) {
      __builtin_memset(at(part, place), 0, static_cast<std::size_t>(kBlock * stride_) * sizeof(Real));
    }
  }

  // G_a += W K_b and with cols_too G_b += W^T Q_a. A tile's rows of W stay in L1 while K streams from L2: the
  // other order is 4 % slower.
  void add(const Weights& w, std::int64_t a, std::int64_t b, std::int64_t part, bool cols_too) const {
    const PairwiseProblem& p = pass_.problem;
    const int height = tiles_extent(a, p.rows, P::kRows), width = tiles_extent(b, p.cols, P::kCols);
    Real* grad_a = at(part, a);
    const auto* k_b = pass_.k.block_rows(b);
    for (int i = 0; i < height; i += P::kRows) {
      multiply_strip<P, Weights::kRowStride, Weights::kRowStep>(grad_a + i * stride_, stride_, w.rows(i), k_b,
                                                                width / P::kFold, p.dim);
    }
    if (!cols_too) return;
    const int col_height = tiles_extent(b, p.cols, P::kRows);
    Real* grad_b = at(part, pass_.first_col_place() + b);
    const auto* q_a = pass_.q.block_rows(a);
    for (int j = 0; j < col_height; j += P::kRows) {
      multiply_strip<P, Weights::kColStride, Weights::kColStep>(grad_b + j * stride_, stride_, w.cols(j), q_a,
                                                                height / P::kFold, p.dim);
    }
  }

  // After all add(): adds up the parts of a place's rows, goes back through the normalisation and writes them
  // where they belong in `out`, the gradient of its side. scratch: a row.
  void finish(std::int64_t place, Real* scratch, const Rows& out) const {
    const PairwiseProblem& p = pass_.problem;
    const Operand<P>& side = pass_.side(place);
    const std::int64_t padded_dim = round_up(p.dim, P::kCols), first = pass_.block_at(place) * kBlock;
    const std::int64_t count = pass_.valid_at(place);
    const Real clamped = 1 / Operand<P>::kSmallestNorm, scale = static_cast<Real>(p.scale * factor_);
    for (std::int64_t i = 0; i < count; ++i) {
      Real* unit = scratch;  // from the input: not rounded to bfloat16
      Real* grad = at(0, place) + i * stride_;
      const Real inverse = side.read_normalised(first + i, unit);
      for (std::int64_t part = 1; part < parts_; ++part) {
        const Real* more = grad + part * rows_ * stride_;
        for (std::int64_t d = 0; d < padded_dim; d += P::kLanes)
          P::store(grad + d, P::load(grad + d) + P::load(more + d));
      }
      Vec along{};
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes) along += P::load(grad + d) * P::load(unit + d);
      const Real dot = P::sum(along);
      scale_terms_[place * kBlock + i] = dot;
      // A norm below the smallest is a constant, as in torch.nn.functional.normalize: nothing to project out.
      const Real projected = p.normalize && inverse != clamped ? dot : 0;
      const Real to_input = p.normalize ? scale * inverse : scale;
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes) {
        P::store(grad + d, (P::load(grad + d) - P::load(unit + d) * projected) * to_input);
      }
      write_row(p.dtype, grad, p.dim, out.row(first + i, p.dtype));
    }
  }

  // After finish() of the rows: factor sum_ij G_ij c_ij, added up in the order of the rows.
  Real scale_gradient() const {
    double sum = 0;
    for (std::int64_t i = 0; i < pass_.problem.rows; ++i) sum += scale_terms_[i];
    return static_cast<Real>(factor_ * sum);
  }

 private:
  Real* at(std::int64_t part, std::int64_t place) const {
    return grad_ + (part * rows_ + place * kBlock) * stride_;
  }

  const Pass<P>& pass_;
  std::int64_t parts_, rows_, stride_;
  double factor_;
  Real* grad_;           // [parts][rows of all places][stride]
  double* scale_terms_;  // [rows of all places]: sum_j G_ij c_ij
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
