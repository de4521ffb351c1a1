// Exponentials that the log-sums leave for the gradient, so that it need not compute them again.
#pragma once

#include "cpu/pack.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// exp(x - |s|), 0 outside of the log-sum, of as many pairs of blocks as fit into what everything else leaves
// of kBytes: all of a small problem, a few of a large one, none of a huge one. Reading a number back costs
// less than the `dim` multiply-adds that made it.
template <class P>
class Kept {
 public:
  using Real = typename P::Real;

  static constexpr std::int64_t kBytes = std::int64_t{32} << 20;

  // The last to take from the arena.
  Kept(std::int64_t blocks, Arena& arena) : blocks_(blocks) {
    const std::int64_t left = kBytes - static_cast<std::int64_t>(arena.used());
    const std::int64_t fit = left < 0 ? 0 : left / (kBlockSize * static_cast<std::int64_t>(sizeof(Real)));
    const std::int64_t pairs = blocks * (blocks + 1) / 2;
    count_ = pairs < fit ? pairs : fit;
    data_ = arena.take<Real>(count_ * kBlockSize);
  }

  // Where the pair a <= b stands, or null. Pairs that are close to each other come first: every round of a
  // tournament has as many of them, and so as much less to do.
  Real* block(std::int64_t a, std::int64_t b) const {
    const std::int64_t distance = b - a, at = distance * blocks_ - distance * (distance - 1) / 2 + a;
    return at < count_ ? data_ + at * kBlockSize : nullptr;
  }

  // The tile at (i, j) of a block: kRows x kCols numbers.
  static FASTSSL_INLINE Real* tile(Real* block, int i, int j) { return block + j * kBlock + i * P::kCols; }

 private:
  static constexpr std::int64_t kBlockSize = std::int64_t{kBlock} * kBlock;

  std::int64_t blocks_, count_;
  Real* data_;
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
