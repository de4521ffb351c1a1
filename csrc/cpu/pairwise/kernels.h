// The entry points of one instruction set. Each pairwise_<isa>.cpp includes this with its own FASTSSL_ISA and
// tile shape. What only this family has stands in fastssl::<isa>::pairwise: two families that each had, say,
// a Shape in fastssl::<isa> would have their templates merged by the linker.
#pragma once

#include "bank.h"
#include "cpu/launch.h"
#include "forward.h"
#include "grad.h"
#include "sigmoid.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class LogsumexpKernels {
 public:
  using Real = typename P::Real;

  LogsumexpKernels(const PairwiseProblem& p, int threads, Arena& arena, bool columns_too)
      : pass_(p, threads, Multiplied::kNone, arena),
        mutual_(columns_too || p.symmetric),
        sums_(pass_, mutual_, nullptr, threads, arena) {}

  void run(Team& team, const LogsumexpOutputs& out) const {
    const auto reset = [&](std::int64_t place) { sums_.reset(place); };
    pass_.prepare(team, reset, [&](std::int64_t b) {
      if (mutual_ && !pass_.shared) reset(pass_.first_col_place() + b);
    });
    sums_.accumulate(team);
    team.for_each(pass_.places(mutual_), [&](std::int64_t place) {
      const std::int64_t first = pass_.block_at(place) * kBlock;
      if (pass_.is_row(place)) {
        sums_.finish(place, static_cast<Real*>(out.row_lse) + first,
                     static_cast<Real*>(out.positive) + first);
      } else {
        sums_.finish(place, static_cast<Real*>(out.col_lse) + first, nullptr);  // the rows' positives
      }
    });
  }

 private:
  Pass<P> pass_;
  bool mutual_;
  LogSums<P> sums_;
};

template <class P>
class GradKernels {
 public:
  using Real = typename P::Real;

  GradKernels(const PairwiseProblem& p, int threads, Arena& arena, const GradTerms& row, const GradTerms& col)
      : pass_(p, threads, Multiplied::kColumns, arena),
        gradient_(pass_, row, col, p.symmetric, nullptr, threads, arena) {}

  void run(Team& team, const GradOutputs& out) const {
    const auto prepare_rows = [&](std::int64_t b) {
      gradient_.prepare_rows(b);
      gradient_.reset(b);
    };
    pass_.prepare(team, prepare_rows, [&](std::int64_t b) { gradient_.prepare_cols(b); });
    gradient_.accumulate(team);
    const Rows dq{{static_cast<char*>(out.dq), nullptr}, {pass_.problem.dim, 0}};
    const Products<P>& products = gradient_.products();
    team.for_each(pass_.q.blocks, [&](std::int64_t b) { products.finish(b, pass_.scratch_of(team), dq); });
    if (team.thread() == 0) *static_cast<Real*>(out.dscale) = products.scale_gradient();
  }

 private:
  Pass<P> pass_;
  Gradient<P> gradient_;
};

// Where the gradients of both sides go: of rows among themselves, one matrix or two that take turns; else one
// for each side that wants one.
template <class P, class Outputs>
void finish_both(const Pass<P>& pass, Team& team, const Products<P>& products, const Outputs& out) {
  const std::int64_t dim = pass.problem.dim;
  char *dq = static_cast<char*>(out.dq), *other = static_cast<char*>(out.dq_other);
  const Rows rows = pass.shared ? Rows{{dq, other}, {dim, dim}} : Rows{{dq, nullptr}, {dim, 0}};
  const Rows cols{{other, nullptr}, {dim, 0}};
  team.for_each(pass.places(pass.shared || other != nullptr), [&](std::int64_t place) {
    products.finish(place, pass.scratch_of(team), pass.is_row(place) ? rows : cols);
  });
}

// Both sides of all pairs: packed once, log-sums, then the gradient, the weights being known. both: of the
// columns too, if they are not the rows.
template <class P>
class LossKernels {
 public:
  using Real = typename P::Real;

  LossKernels(const PairwiseProblem& p, int threads, Arena& arena, const LossWeights& weights, bool both)
      : pass_(p, threads, both ? Multiplied::kBoth : Multiplied::kColumns, arena),
        weights_(weights),
        both_(both),
        count_(pass_.places(true) * kBlock),
        row_lse_(arena.take<Real>(count_)),
        positive_(arena.take<Real>(count_)),
        lse_weight_(arena.take<Real>(count_)),
        positive_weight_(arena.take<Real>(count_)),
        terms_{row_lse_, lse_weight_, positive_weight_},
        col_terms_{row_lse_ + first_col(), lse_weight_ + first_col(), positive_weight_ + first_col()},
        sums_(pass_, /*mutual=*/true, &kept_, threads, arena),
        gradient_(pass_, terms_, col_terms_, /*mutual=*/both, &kept_, threads, arena),
        kept_(pass_, arena) {}

  void run(Team& team, const LossOutputs& out) const {
    const auto reset = [&](std::int64_t place) {
      sums_.reset(place);
      if (both_ || pass_.is_row(place)) gradient_.reset(place);
    };
    pass_.prepare(team, reset, [&](std::int64_t b) {
      if (!pass_.shared) reset(pass_.first_col_place() + b);
    });
    sums_.accumulate(team);
    team.for_each(pass_.places(true), [&](std::int64_t place) {
      const std::int64_t first = place * kBlock;
      sums_.finish(place, row_lse_ + first, positive_ + first);
      for (std::int64_t i = first; i < first + pass_.valid_at(place); ++i) {
        lse_weight_[i] =
            own_ ? static_cast<const Real*>(weights_.log_sum)[i] : static_cast<Real>(weights_.all);
        positive_weight_[i] = own_ ? static_cast<const Real*>(weights_.positive)[i] : -lse_weight_[i];
      }
      if (pass_.is_row(place)) gradient_.prepare_rows(place);
      if (pass_.shared || !pass_.is_row(place)) gradient_.prepare_cols(pass_.block_at(place));
    });
    gradient_.accumulate(team);
    finish_both(pass_, team, gradient_.products(), out);
    if (team.thread() != 0) return;
    double loss = 0;
    for (std::int64_t place = 0; place < pass_.places(true); ++place) {
      const std::int64_t first = place * kBlock;
      for (std::int64_t i = first; i < first + pass_.valid_at(place); ++i) {
        // Not infinity times zero where a log-sum has no pairs.
        const double w = lse_weight_[i], log_sum = w == 0 ? 0 : static_cast<double>(row_lse_[i]);
        loss += own_ ? w * log_sum + positive_weight_[i] * static_cast<double>(positive_[i])
                     : log_sum - static_cast<double>(positive_[i]);
      }
    }
    *static_cast<Real*>(out.loss) = static_cast<Real>(own_ ? loss : weights_.all * loss);
    // Among themselves every pair was counted twice, as a row and as a column.
    *static_cast<Real*>(out.dscale) = gradient_.products().scale_gradient() / (pass_.shared ? 2 : 1);
  }

 private:
  std::int64_t first_col() const { return pass_.first_col_place() * kBlock; }

  Pass<P> pass_;
  const LossWeights& weights_;
  const bool both_;
  const bool own_ = weights_.log_sum != nullptr;                // each row's
  std::int64_t count_;                                          // rows of all places
  Real *row_lse_, *positive_, *lse_weight_, *positive_weight_;  // [count]
  GradTerms terms_, col_terms_;
  LogSums<P> sums_;
  Gradient<P> gradient_;
  Kept<P> kept_;
};

template <class P>
class SigmoidKernels {
 public:
  using Real = typename P::Real;

  SigmoidKernels(const PairwiseProblem& p, int threads, Arena& arena, double bias, double weight,
                 bool gradient, bool both)
      : pass_(p, threads,
              !gradient ? Multiplied::kNone
              : both    ? Multiplied::kBoth
                        : Multiplied::kColumns,
              arena),
        sigmoid_(pass_, bias, weight, gradient, both, threads, arena) {}

  void run(Team& team, const SigmoidOutputs& out) const {
    const auto reset = [&](std::int64_t place) { sigmoid_.reset(place); };
    pass_.prepare(team, reset, [&](std::int64_t b) { reset(pass_.first_col_place() + b); });
    sigmoid_.accumulate(team);
    if (out.dq != nullptr) finish_both(pass_, team, sigmoid_.products(), out);
    if (team.thread() != 0) return;
    *static_cast<Real*>(out.loss) = sigmoid_.loss();
    if (out.dq == nullptr) return;
    *static_cast<Real*>(out.dscale) = sigmoid_.products().scale_gradient();
    *static_cast<Real*>(out.dbias) = sigmoid_.bias_gradient();
  }

 private:
  Pass<P> pass_;
  Sigmoid<P> sigmoid_;
};

template <class P>
class BankKernels {
 public:
  using Real = typename P::Real;

  BankKernels(const PairwiseProblem& p, int threads, Arena& arena, double weight)
      : pass_(p, threads, Multiplied::kColumns, arena, /*packs_columns=*/!Bank<P>::streams(p)),
        bank_(pass_, weight, threads, arena) {}

  void run(Team& team, const BankOutputs& out) const {
    pass_.prepare(team, [&](std::int64_t b) { bank_.reset(b); }, [](std::int64_t) {});
    bank_.accumulate(team);
    team.for_each(pass_.q.blocks, [&](std::int64_t b) { bank_.finish(b, pass_.scratch_of(team), out); });
    if (team.thread() == 0) *static_cast<Real*>(out.dscale) = bank_.scale_gradient();
  }

 private:
  Pass<P> pass_;
  Bank<P> bank_;
};

template <class Kernels, class Outputs, class... Arguments>
void run(const PairwiseProblem& p, const Outputs& out, const Arguments&... arguments) {
  const double multiply_adds =
      static_cast<double>(p.rows) * static_cast<double>(p.cols) * static_cast<double>(p.dim);
  // One block of rows among themselves is one thread's work.
  const std::int64_t tasks = ceil_div(p.rows, kBlock) * (p.k == nullptr ? 1 : ceil_div(p.cols, kBlock));
  const int threads = threads_for(tasks < p.threads ? tasks : p.threads, multiply_adds);
  launch(
      threads, [&](Arena& arena) { return Kernels(p, threads, arena, arguments...); },
      [&](const Kernels& kernels, Team& team) { kernels.run(team, out); });
}

template <class P>
void logsumexp(const PairwiseProblem& p, const LogsumexpOutputs& out) {
  run<LogsumexpKernels<P>>(p, out, out.col_lse != nullptr);
}

template <class P>
void grad(const PairwiseProblem& p, const GradTerms& row, const GradTerms& col, const GradOutputs& out) {
  run<GradKernels<P>>(p, out, row, col);
}

template <class P>
void loss(const PairwiseProblem& p, const LossWeights& weights, const LossOutputs& out) {
  run<LossKernels<P>>(p, out, weights, p.k == nullptr || out.dq_other != nullptr);
}

template <class P>
void bank(const PairwiseProblem& p, double weight, const BankOutputs& out) {
  run<BankKernels<P>>(p, out, weight);
}

template <class P>
void sigmoid(const PairwiseProblem& p, double bias, double weight, const SigmoidOutputs& out) {
  run<SigmoidKernels<P>>(p, out, bias, weight, out.dq != nullptr, out.dq_other != nullptr);
}

template <class P>
PairwiseProducts with_product() {
  return {logsumexp<P>, grad<P>, loss<P>, bank<P>, sigmoid<P>};
}

template <class I>
PairwiseKernels plain_kernels() {
  return {with_product<PlainProduct<I, float>>(), with_product<PlainProduct<I, double>>(), {}};
}

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
