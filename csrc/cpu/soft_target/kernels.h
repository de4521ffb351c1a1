// The entry points of one instruction set. Each soft_target_<isa>.cpp includes this with its own FASTSSL_ISA
// and the width of its vectors. Everything stands in fastssl::<isa>::soft_target, or the linker would merge
// it with what another family calls the same.
#pragma once

#include "cpu/launch.h"
#include "image.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace soft_target {

template <class S, class Real>
class Kernels {
 public:
  Kernels(const SoftTargetProblem& p, const SoftTargetLogSums* known, const SoftTargetOutputs& out,
          int threads, Arena& arena)
      : p_(p),
        out_(out),
        image_(p, known, out),
        groups_(out.column_sum == nullptr || p.images < kGroups ? p.images : kGroups),
        row_stride_(Image<S, Real>::row_stride(p)) {
    const std::int64_t chunks = ceil_div(p.prototypes, kChunk), targets = Image<S, Real>::targets(p);
    scratch_ = arena.take<Scratch<Real>>(threads);
    for (int i = 0; i < threads; ++i) {
      const Scratch<Real> one(targets, row_stride_, chunks, arena);
      if (scratch_ != nullptr) scratch_[i] = one;
    }
    column_sums_ = out.column_sum == nullptr ? nullptr : arena.take<Real>(groups_ * row_stride_);
  }

  void run(Team& team) const {
    team.for_each(groups_, [&](std::int64_t g) {
      Real* sums = column_sums_ == nullptr ? nullptr : column_sums_ + g * row_stride_;
      for (std::int64_t k = 0; sums != nullptr && k < row_stride_; ++k) sums[k] = 0;
      for (std::int64_t b = g * p_.images / groups_; b < (g + 1) * p_.images / groups_; ++b)
        image_.run(b, scratch_[team.thread()], sums);
      S::finish_streaming();
    });
    if (column_sums_ == nullptr) return;
    team.for_each(ceil_div(p_.prototypes, kChunk), [&](std::int64_t c) {
      const std::int64_t end = (c + 1) * kChunk < p_.prototypes ? (c + 1) * kChunk : p_.prototypes;
      for (std::int64_t k = c * kChunk; k < end; ++k) {
        Real sum = 0;
        for (std::int64_t g = 0; g < groups_; ++g) sum += column_sums_[g * row_stride_ + k];
        static_cast<Real*>(out_.column_sum)[k] = sum;
      }
    });
  }

 private:
  // Images are added up in groups that depend on nothing but their number: the same bits on any number of
  // threads, for the memory of a few rows.
  static constexpr std::int64_t kGroups = 16;

  const SoftTargetProblem& p_;
  const SoftTargetOutputs& out_;
  Image<S, Real> image_;
  std::int64_t groups_, row_stride_;
  Scratch<Real>* scratch_;  // [threads]
  Real* column_sums_;       // [groups][row_stride]
};

template <class S, class Real>
void run(const SoftTargetProblem& p, const SoftTargetLogSums* known, const SoftTargetOutputs& out) {
  constexpr double kPerLogit = 8;  // an exponential costs about as much as so many multiply-adds
  const double work = kPerLogit * static_cast<double>(p.images) * static_cast<double>(p.prototypes) *
                      static_cast<double>(p.students + p.teachers);
  const int threads = threads_for(p.images < p.threads ? p.images : p.threads, work);
  launch(
      threads, [&](Arena& arena) { return Kernels<S, Real>(p, known, out, threads, arena); },
      [](const Kernels<S, Real>& kernels, Team& team) { kernels.run(team); });
}

template <int kVectorBytes>
SoftTargetKernels make_kernels() {
  return {run<Simd<float, kVectorBytes>, float>, run<Simd<double, kVectorBytes>, double>};
}

}  // namespace soft_target
}  // namespace FASTSSL_ISA
}  // namespace fastssl
