// The best columns that a row has met so far.
#pragma once

#include "cpu/simd.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace neighbors {

// A product and the column it is with.
template <class Real>
struct Candidate {
  Real product;
  std::int64_t column;

  // The larger product, NaN being the largest of all; of equal ones the earlier column.
  bool before(const Candidate& other) const {
    if (product > other.product) return true;
    if (product < other.product) return false;
    const bool is_nan = product != product, other_is_nan = other.product != other.product;
    return is_nan != other_is_nan ? is_nan : column < other.column;
  }
};

// Up to `count` candidates: once there are that many a heap with the last of them, the next to go, in front.
// A better one takes its place in O(log count), so that it does not matter much how many columns are wanted.
template <class Real>
struct Best {
  Candidate<Real>* items;  // [count]
  std::int64_t count;
  std::int64_t* length;

  // Products that are not above this change nothing if their column is a later one. NaN, which nothing is
  // below, while there is room for more.
  Real threshold() const {
    return *length == count ? items[0].product : static_cast<Real>(__builtin_nan(""));
  }

  void offer(const Candidate<Real>& candidate) const {
    if (*length < count) {
      items[(*length)++] = candidate;
      if (*length == count) make_heap();
    } else if (candidate.before(items[0])) {
      items[0] = candidate;
      sink(0, count);
    }
  }

  // Puts them in order, the best first. Nothing may be offered after it.
  void sort() const {
    if (*length < count) make_heap();
    for (std::int64_t end = *length - 1; end > 0; --end) {
      const Candidate<Real> last = items[0];
      items[0] = items[end];
      items[end] = last;
      sink(0, end);
    }
  }

 private:
  void make_heap() const {
    for (std::int64_t at = *length / 2 - 1; at >= 0; --at) sink(at, *length);
  }

  // Moves the item at `at` down among the first `end` until both below it come before it.
  void sink(std::int64_t at, std::int64_t end) const {
    const Candidate<Real> moved = items[at];
    for (std::int64_t below = 2 * at + 1; below < end; below = 2 * at + 1) {
      if (below + 1 < end && items[below].before(items[below + 1])) ++below;
      if (!moved.before(items[below])) break;
      items[at] = items[below];
      at = below;
    }
    items[at] = moved;
  }
};

}  // namespace neighbors
}  // namespace FASTSSL_ISA
}  // namespace fastssl
