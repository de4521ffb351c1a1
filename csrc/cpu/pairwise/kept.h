// What the log-sums leave for the gradient, so that it need not compute it again.
#pragma once

#include "pass.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// exp(x - |s|), 0 outside of the log-sum, or with a running maximum the similarities c. Of as many pairs of
// blocks as fit into what everything else leaves of kBytes: all of a small problem, a few of a large one,
// none of a huge one. Of more where as much memory again as everything else takes holds half of them. Reading
// a number back costs less than the `dim` multiply-adds that made it, and what is O((M + N) D) stays that.
template <class P>
class Kept {
 public:
  using Real = typename P::Real;

  static constexpr std::int64_t kBytes = std::int64_t{32} << 20;

  // The last to take from the arena.
  Kept(const Pass<P>& pass, Arena& arena) : shared_(pass.shared), rows_(pass.q.blocks), cols_(pass.k.blocks) {
    const auto used = static_cast<std::int64_t>(arena.used());
    const std::int64_t block = kBlockSize * static_cast<std::int64_t>(sizeof(Real));
    const std::int64_t pairs = shared_ ? rows_ * (rows_ + 1) / 2 : rows_ * cols_;
    std::int64_t room = used < kBytes ? kBytes - used : 0;
    if (used > room && used / block >= pairs / 2) room = used;
    const std::int64_t fit = room / block;
    count_ = pairs < fit ? pairs : fit;
    data_ = arena.take<Real>(count_ * kBlockSize);
  }

  // Where the pair's block of tiles stands, a <= b where rows are columns, or null. Pairs that are close to
  // each other come first: every round of a tournament has as many of them, and so as much less to do.
  Real* block(std::int64_t a, std::int64_t b) const {
    const std::int64_t distance = shared_ ? b - a : (b + rows_ * cols_ - a) % cols_;
    const std::int64_t at = a + distance * rows_ - (shared_ ? distance * (distance - 1) / 2 : 0);
    return at < count_ ? data_ + at * kBlockSize : nullptr;
  }

 private:
  static constexpr std::int64_t kBlockSize = std::int64_t{kBlock} * kBlock;

  bool shared_;
  std::int64_t rows_, cols_, count_;
  Real* data_;
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
