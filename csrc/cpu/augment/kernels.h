// The entry point of one instruction set. Each augment_<isa>.cpp includes this with its own FASTSSL_ISA and
// the width of its vectors.
//
// Images are drawn one by one, each with all its views, so that its pixels stay in cache. Everything else of
// a call happens inside of that: one thread works on an image, in memory of its own.
#pragma once

#include "cpu/launch.h"
#include "view.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

template <class S>
class Kernels {
 public:
  Kernels(const AugmentProblem& p, const Limits& most, int threads, Arena& arena)
      : p_(p), past_caches_(output_bytes(p) > kCached), scratch_(arena.take<Scratch<S>>(threads)) {
    for (int i = 0; i < threads; ++i) {
      const Scratch<S> one(most, arena);
      if (scratch_ != nullptr) scratch_[i] = one;
    }
  }

  void run(Team& team) const {
    team.for_each(p_.batch, [&](std::int64_t b) {
      for (std::int64_t v = 0; v < p_.view_count; ++v)
        ViewMaker<S>(p_, p_.views[v], past_caches_, scratch_[team.thread()]).run(b);
      S::finish_streaming();
    });
  }

 private:
  static constexpr std::int64_t kCached = std::int64_t{4} << 20;  // less is still in a cache when it is read

  static std::int64_t output_bytes(const AugmentProblem& p) {
    std::int64_t pixels = 0;
    for (std::int64_t v = 0; v < p.view_count; ++v) pixels += p.views[v].height * p.views[v].width;
    return p.batch * p.channels * pixels * element_bytes(p.dtype);
  }

  const AugmentProblem& p_;
  bool past_caches_;
  Scratch<S>* scratch_;  // [threads]
};

template <class S>
void run(const AugmentProblem& p) {
  constexpr double kPerValue = 16;  // multiply-adds that a value of a view costs at least
  const Limits most = Limits::of<Strips<S>>(p);
  const double work =
      kPerValue * static_cast<double>(p.batch * p.channels * p.view_count) * static_cast<double>(most.pixels);
  const int threads = threads_for(p.batch < p.threads ? p.batch : p.threads, work);
  launch(
      threads, [&](Arena& arena) { return Kernels<S>(p, most, threads, arena); },
      [](const Kernels<S>& kernels, Team& team) { kernels.run(team); });
}

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
