// The entry points of one instruction set. Each pairwise_<isa>.cpp includes this with its own FASTSSL_ISA and
// tile shape. What only this family has stands in fastssl::<isa>::pairwise: two families that each had, say,
// a Shape in fastssl::<isa> would have their templates merged by the linker.
#pragma once

#include "cpu/workspace.h"
#include "forward.h"
#include "grad.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

inline double multiply_adds(const PairwiseProblem& p) {
  return static_cast<double>(p.rows) * static_cast<double>(p.cols) * static_cast<double>(p.dim);
}

// Lays a pass out twice: first to measure its memory, then in the borrowed workspace; then runs it.
template <class P>
void logsumexp(const PairwiseProblem& p, const LogsumexpOutputs& out) {
  const int threads = threads_for(p.threads, multiply_adds(p));
  Arena measure(nullptr);
  LogsumexpPass<P>(p, threads, measure);
  WorkspaceLease workspace(measure.used());
  Arena arena(workspace.data());
  const LogsumexpPass<P> pass(p, threads, arena);
  run_team(threads, [&](Team& team) { pass.run(team, out); });
}

template <class P>
void grad(const PairwiseProblem& p, const GradTerms& row, const GradTerms& col, const GradOutputs& out) {
  const int threads = threads_for(p.threads, multiply_adds(p));
  Arena measure(nullptr);
  GradPass<P>(p, row, col, threads, measure);
  WorkspaceLease workspace(measure.used());
  Arena arena(workspace.data());
  const GradPass<P> pass(p, row, col, threads, arena);
  run_team(threads, [&](Team& team) { pass.run(team, out); });
  *static_cast<typename P::Real*>(out.dscale) = pass.scale_gradient();
}

template <class I>
PairwiseKernels plain_kernels() {
  using F = PlainProduct<I, float>;
  using D = PlainProduct<I, double>;
  return {logsumexp<F>, logsumexp<D>, nullptr, grad<F>, grad<D>, nullptr};
}

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
