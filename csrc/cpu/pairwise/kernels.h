// The entry points of one instruction set. Each pairwise_<isa>.cpp includes this with its own FASTSSL_ISA and
// tile shape. What only this family has stands in fastssl::<isa>::pairwise: two families that each had, say,
// a Shape in fastssl::<isa> would have their templates merged by the linker.
#pragma once

#include "bank.h"
#include "cpu/launch.h"
#include "forward.h"
#include "grad.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class LogsumexpKernels {
 public:
  using Real = typename P::Real;

  LogsumexpKernels(const PairwiseProblem& p, int threads, Arena& arena)
      : pass_(p, threads, /*with_rows=*/false, arena), sums_(pass_, nullptr, threads, arena) {}

  void run(Team& team, const LogsumexpOutputs& out) const {
    pass_.prepare(team, [&](std::int64_t b) { sums_.reset(b); }, [](std::int64_t) {});
    sums_.accumulate(team);
    team.for_each(pass_.q.blocks, [&](std::int64_t b) {
      sums_.finish(b, static_cast<Real*>(out.row_lse), static_cast<Real*>(out.positive));
    });
  }

 private:
  Pass<P> pass_;
  LogSums<P> sums_;
};

template <class P>
class GradKernels {
 public:
  using Real = typename P::Real;

  GradKernels(const PairwiseProblem& p, int threads, Arena& arena, const GradTerms& row, const GradTerms& col)
      : pass_(p, threads, /*with_rows=*/true, arena), gradient_(pass_, row, col, nullptr, threads, arena) {}

  void run(Team& team, const GradOutputs& out) const {
    const auto prepare_rows = [&](std::int64_t b) {
      gradient_.prepare_rows(b);
      gradient_.reset(b);
    };
    pass_.prepare(team, prepare_rows, [&](std::int64_t b) { gradient_.prepare_cols(b); });
    gradient_.accumulate(team);
    const Rows dq{{static_cast<char*>(out.dq), nullptr}, {pass_.problem.dim, 0}};
    team.for_each(pass_.q.blocks, [&](std::int64_t b) { gradient_.finish(b, pass_.scratch_of(team), dq); });
    if (team.thread() == 0) *static_cast<Real*>(out.dscale) = gradient_.scale_gradient();
  }

 private:
  Pass<P> pass_;
  Gradient<P> gradient_;
};

// Rows among themselves: packed once, log-sums, then the gradient with the same weight for every row.
template <class P>
class LossKernels {
 public:
  using Real = typename P::Real;

  LossKernels(const PairwiseProblem& p, int threads, Arena& arena, double weight)
      : pass_(p, threads, /*with_rows=*/true, arena),
        weight_(weight),
        row_lse_(arena.take<Real>(p.rows)),
        positive_(arena.take<Real>(p.rows)),
        lse_weight_(arena.take<Real>(p.rows)),
        positive_weight_(arena.take<Real>(p.rows)),
        terms_{row_lse_, lse_weight_, positive_weight_},
        sums_(pass_, pass_.fixed_shift ? &kept_ : nullptr, threads, arena),
        gradient_(pass_, terms_, terms_, pass_.fixed_shift ? &kept_ : nullptr, threads, arena),
        kept_(pass_.fixed_shift ? pass_.q.blocks : 0, arena) {}

  void run(Team& team, const LossOutputs& out) const {
    const auto reset = [&](std::int64_t b) {
      sums_.reset(b);
      gradient_.reset(b);
    };
    pass_.prepare(team, reset, [](std::int64_t) {});
    sums_.accumulate(team);
    team.for_each(pass_.q.blocks, [&](std::int64_t b) {
      sums_.finish(b, row_lse_, positive_);
      const std::int64_t end = (b + 1) * kBlock < pass_.problem.rows ? (b + 1) * kBlock : pass_.problem.rows;
      for (std::int64_t i = b * kBlock; i < end; ++i) {
        lse_weight_[i] = static_cast<Real>(weight_);
        positive_weight_[i] = -lse_weight_[i];
      }
      gradient_.prepare_rows(b);
      gradient_.prepare_cols(b);
    });
    gradient_.accumulate(team);
    const std::int64_t dim = pass_.problem.dim;
    const Rows dq{{static_cast<char*>(out.dq), static_cast<char*>(out.dq_other)}, {dim, dim}};
    team.for_each(pass_.q.blocks, [&](std::int64_t b) { gradient_.finish(b, pass_.scratch_of(team), dq); });
    if (team.thread() != 0) return;
    double loss = 0;
    for (std::int64_t i = 0; i < pass_.problem.rows; ++i)
      loss += static_cast<double>(row_lse_[i]) - static_cast<double>(positive_[i]);
    *static_cast<Real*>(out.loss) = static_cast<Real>(weight_ * loss);
    // As a row and as a column, every pair was counted twice.
    *static_cast<Real*>(out.dscale) = gradient_.scale_gradient() / 2;
  }

 private:
  Pass<P> pass_;
  double weight_;
  Real *row_lse_, *positive_, *lse_weight_, *positive_weight_;  // [rows]
  GradTerms terms_;
  LogSums<P> sums_;
  Gradient<P> gradient_;
  Kept<P> kept_;
};

template <class P>
class BankKernels {
 public:
  using Real = typename P::Real;

  BankKernels(const PairwiseProblem& p, int threads, Arena& arena, double weight)
      : pass_(p, threads, /*with_rows=*/true, arena, /*packs_columns=*/!Bank<P>::streams(p)),
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
  run<LogsumexpKernels<P>>(p, out);
}

template <class P>
void grad(const PairwiseProblem& p, const GradTerms& row, const GradTerms& col, const GradOutputs& out) {
  run<GradKernels<P>>(p, out, row, col);
}

template <class P>
void loss(const PairwiseProblem& p, double weight, const LossOutputs& out) {
  run<LossKernels<P>>(p, out, weight);
}

template <class P>
void bank(const PairwiseProblem& p, double weight, const BankOutputs& out) {
  run<BankKernels<P>>(p, out, weight);
}

template <class I>
PairwiseKernels plain_kernels() {
  using F = PlainProduct<I, float>;
  using D = PlainProduct<I, double>;
  return {logsumexp<F>, logsumexp<D>, nullptr, grad<F>, grad<D>, nullptr,
          loss<F>,      loss<D>,      nullptr, bank<F>, bank<D>, nullptr};
}

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
