// Rows against columns that need no gradient (a queue, keys of a momentum encoder): each block of
// exponentials is summed up and multiplied with the columns while it is there, as attention does whose values
// are the keys.
//   dq^_i = weight s ((sum_j e_ij k^_j + e_i p^_i) / (sum_j e_ij + e_i) - p^_i)
// The positives p are taken from rows of their own, in Real: at low loss their two terms nearly cancel. Where
// they are columns too, the caller leaves those pairs out. A row without a positive has zeros in its place.
#pragma once

#include "pass.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class Bank {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Ints = typename P::Ints;
  using Weights = typename P::Weights;
  using Unit = typename P::Unit;

  // Whether the rows are few: then all of them meet a block of columns at once, which is packed where it is
  // used and never written to memory. Otherwise that would take too many partial sums.
  static bool streams(const PairwiseProblem& p) { return ceil_div(p.rows, kBlock) <= kFewBlocks; }

  Bank(const Pass<P>& pass, double weight, int threads, Arena& arena)
      : pass_(pass),
        weight_(weight),
        streams_(streams(pass.problem)),
        rectangle_(streams_ ? 1 : pass.q.blocks, pass.k.blocks),
        stride_(pass.q.row_stride),
        positives_(Source{{{address(pass.problem.positive), nullptr}, {pass.problem.positive_stride, 0}},
                          pass.problem.rows,
                          pass.problem.dim,
                          pass.problem.dtype,
                          pass.problem.normalize}),
        weights_(arena.take<Weights>(threads)),
        columns_(streams_ ? arena.take<Unit>(threads * column_units()) : nullptr),
        sum_(arena.take<Real>(rectangle_.chunks * pass.q.padded)),
        grad_(arena.take<Real>(rectangle_.chunks * pass.q.padded * stride_)),
        scale_terms_(arena.take<double>(pass.problem.rows)) {}

  // Before accumulate(), for each block of rows.
  void reset(std::int64_t b) const {
    for (std::int64_t part = 0; part < rectangle_.chunks; ++part) {
      const std::int64_t first = part * pass_.q.padded + b * kBlock;
      for (std::int64_t i = first; i < first + kBlock; ++i) sum_[i] = 0;
      __builtin_memset(grad_ + first * stride_, 0, static_cast<std::size_t>(kBlock * stride_) * sizeof(Real));
    }
  }

  void accumulate(Team& team) const {
    const Mask<P> mask = pass_.mask();
    Weights& w = weights_[team.thread()];
    Real* scratch = pass_.scratch_of(team);
    rectangle_.run(team, [&](std::int64_t row_block, std::int64_t part, std::int64_t b0, std::int64_t b1) {
      for (std::int64_t b = b0; b < b1; ++b) {
        if (!streams_) {
          block(mask, w, scratch, row_block, b, part, pass_.k.block(b), pass_.k.block_rows(b));
          continue;
        }
        Unit* columns = columns_ + team.thread() * column_units();
        Unit* rows = columns + pass_.k.block_size();
        pass_.k.pack_into(b, scratch, columns, rows, nullptr);
        for (std::int64_t a = 0; a < pass_.q.blocks; ++a) block(mask, w, scratch, a, b, part, columns, rows);
      }
    });
  }

  // After accumulate(): the losses of block b's rows and their gradient. scratch: two rows.
  void finish(std::int64_t b, Real* scratch, const BankOutputs& out) const {
    const PairwiseProblem& p = pass_.problem;
    const std::int64_t padded_dim = round_up(p.dim, P::kCols);
    const std::int64_t end = (b + 1) * kBlock < p.rows ? (b + 1) * kBlock : p.rows;
    const Rows dq{{static_cast<char*>(out.dq), nullptr}, {p.dim, 0}};
    const Real clamped = 1 / Operand<P>::kSmallestNorm;
    for (std::int64_t i = b * kBlock; i < end; ++i) {
      Real *unit = scratch, *positive = scratch + stride_;  // from the inputs: not rounded to bfloat16
      const Real inverse = pass_.q.read_normalised(i, unit);
      positives_.read_normalised(i, positive);
      Vec similar{};
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes)
        similar += P::load(unit + d) * P::load(positive + d);
      const double c = P::sum(similar);
      const double logit = p.scale * c, shift = pass_.shift * kLn2;
      const std::int64_t index = p.positives == Positives::kIndex ? p.row_key[i] : 0;
      const bool has_positive = index >= 0 && index < p.cols;
      const double own = has_positive ? __builtin_exp(logit - shift) : 0;
      double sum = own;
      Real* grad = grad_ + i * stride_;
      for (std::int64_t part = 0; part < rectangle_.chunks; ++part) {
        sum += sum_[part * pass_.q.padded + i];
        const Real* more = grad + part * pass_.q.padded * stride_;
        if (part == 0) continue;
        for (std::int64_t d = 0; d < padded_dim; d += P::kLanes)
          P::store(grad + d, P::load(grad + d) + P::load(more + d));
      }
      static_cast<Real*>(out.loss)[i] = static_cast<Real>(__builtin_log(sum) + shift - logit);
      const Real share = static_cast<Real>(1 / sum), of_positive = static_cast<Real>((own - sum) / sum);
      Vec along{};
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes) {
        const Vec g = P::load(grad + d) * share + P::load(positive + d) * of_positive;
        P::store(grad + d, g);
        along += g * P::load(unit + d);
      }
      const Real dot = P::sum(along);
      scale_terms_[i] = dot;
      // A norm below the smallest is a constant, as in torch.nn.functional.normalize: nothing to project out.
      const Real projected = p.normalize && inverse != clamped ? dot : 0;
      const Real factor = static_cast<Real>(weight_ * p.scale) * inverse;
      for (std::int64_t d = 0; d < padded_dim; d += P::kLanes)
        P::store(grad + d, (P::load(grad + d) - P::load(unit + d) * projected) * factor);
      write_row(p.dtype, grad, p.dim, dq.row(i, p.dtype));
    }
  }

  // After finish(): the derivative with respect to s, added up in the order of the rows.
  Real scale_gradient() const {
    double sum = 0;
    for (std::int64_t i = 0; i < pass_.problem.rows; ++i) sum += scale_terms_[i];
    return static_cast<Real>(weight_ * sum);
  }

 private:
  static constexpr std::int64_t kFewBlocks = 8;

  std::int64_t column_units() const { return pass_.k.block_size() + pass_.k.block_rows_size(); }

  // columns, column_rows: block b as the tiles read it, and as it is multiplied into the gradient.
  void block(const Mask<P>& mask, Weights& w, Real* scratch, std::int64_t a, std::int64_t b,
             std::int64_t part, const Unit* columns, const Unit* column_rows) const {
    const PairwiseProblem& p = pass_.problem;
    const std::int64_t rows = part * pass_.q.padded + a * kBlock;
    const int height = tiles_extent(a, p.rows, P::kRows), width = tiles_extent(b, p.cols, P::kCols);
    const BlockProduct<P> similarities(pass_.q.block(a), columns, pass_.k.steps, height, width, scratch);
    Vec sum[kBlock];
    for (int i = 0; i < height; ++i) sum[i] = Vec{};
    for (int j = 0; j < width; j += P::kCols) {
      for (int i = 0; i < height; i += P::kRows) {
        mask.touches(a * kBlock + i, b * kBlock + j) ? tile<true>(mask, w, sum, a, b, i, j, similarities)
                                                     : tile<false>(mask, w, sum, a, b, i, j, similarities);
      }
    }
    for (int i = 0; i < height; i += P::kRows) {
      multiply_strip<P, Weights::kRowStride, Weights::kRowStep>(
          grad_ + (rows + i) * stride_, stride_, w.rows(i), column_rows, width / P::kFold, p.dim);
    }
    for (int i = 0; i < height; ++i) sum_[rows + i] += P::sum(sum[i]);
  }

  template <bool kMasked>
  __attribute__((noinline)) void tile(const Mask<P>& mask, Weights& w, Vec* sum, std::int64_t a,
                                      std::int64_t b, int i, int j,
                                      const BlockProduct<P>& similarities) const {
    Tile<P> e;
    similarities.tile(e, i, j);
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      Ints in_sum[P::kVectors], matched[P::kVectors];
      if (kMasked) mask.row(a * kBlock + i + r, b * kBlock + j, in_sum, matched);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) {
        e[r][v] = P::exp2(pass_.exponent(e[r][v], pass_.shift));
        if (kMasked) e[r][v] = in_sum[v] ? e[r][v] : Vec{};
        sum[i + r] += e[r][v];
      }
    }
    P::store_weights(w, i, j, e, false);
  }

  const Pass<P>& pass_;
  double weight_;
  bool streams_;
  Rectangle rectangle_;  // of parts: row blocks, or one of all rows, and chunks of columns
  std::int64_t stride_;
  Operand<P> positives_;  // rows as they are given: nothing is packed
  Weights* weights_;      // [threads]
  Unit* columns_;         // [threads][column_units()]
  Real* sum_;             // [chunks][padded rows]
  Real* grad_;            // [chunks][padded rows][stride]: sum_j e_ij k^_j
  double* scale_terms_;   // [rows]
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
