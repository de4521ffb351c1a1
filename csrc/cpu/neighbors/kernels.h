// The search, and the entry points of one instruction set. Each neighbors_<isa>.cpp includes this with its
// own FASTSSL_ISA and tile shape.
#pragma once

#include "best.h"
#include "cpu/launch.h"
#include "cpu/pack.h"
#include "cpu/schedule.h"
#include "neighbors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace neighbors {

inline Source source(const void* data, std::int64_t stride, std::int64_t count, const NeighborsProblem& p) {
  char* only_read = static_cast<char*>(const_cast<void*>(data));  // Rows serves outputs too
  return {{{only_read, nullptr}, {stride, 0}}, count, p.dim, p.dtype, /*normalize=*/false};
}

// Each tile of products is compared with the worst that its rows still hold. Soon hardly any product is
// better, so that a tile costs one comparison per vector; the few better ones are offered one by one.
template <class P>
class Search {
 public:
  using Real = typename P::Real;
  using Vec = typename P::Vec;
  using Ints = typename P::Ints;

  Search(const NeighborsProblem& p, int threads, Arena& arena)
      : problem_(p),
        q_(source(p.q, p.q_stride, p.rows, p), /*with_rows=*/false, arena),
        k_(p.k == nullptr ? q_ : Operand<P>(source(p.k, p.k_stride, p.cols, p), /*with_rows=*/false, arena)),
        rectangle_(in_chunks(q_.blocks, k_.blocks, p.threads)),
        scratch_size_(Operand<P>::scratch_size(p.dim)),
        scratch_(arena.take<Real>(threads * scratch_size_)),
        kept_(arena.take<Candidate<Real>>(rectangle_.chunks * p.rows * p.count)),
        length_(arena.take<std::int64_t>(rectangle_.chunks * p.rows)) {}

  void run(Team& team, std::int64_t* columns) const {
    Real* mine = scratch_ + team.thread() * scratch_size_;
    team.for_each(q_.blocks + (problem_.k == nullptr ? 0 : k_.blocks), [&](std::int64_t b) {
      if (b < q_.blocks) {
        q_.pack(b, mine);
      } else {
        k_.pack(b - q_.blocks, mine);
      }
    });
    rectangle_.run(team, [&](std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1) {
      search(a, part, b0, b1, mine);
    });
    team.for_each(q_.blocks, [&](std::int64_t a) {
      for (std::int64_t row = a * kBlock; row < end_of(a); ++row) merge(row, columns + row * problem_.count);
    });
  }

 private:
  // The result does not depend on how the columns are cut, unlike a sum, so they are cut no more than the
  // threads need: every chunk starts without a threshold.
  static Rectangle in_chunks(std::int64_t row_blocks, std::int64_t col_blocks, std::int64_t threads) {
    constexpr std::int64_t kTasksPerThread = 4;
    Rectangle rectangle(row_blocks, col_blocks);
    const std::int64_t wanted = threads > 1 ? ceil_div(kTasksPerThread * threads, row_blocks) : 1;
    if (wanted < rectangle.chunks) rectangle.chunks = wanted;
    return rectangle;
  }

  std::int64_t end_of(std::int64_t a) const {
    return (a + 1) * kBlock < problem_.rows ? (a + 1) * kBlock : problem_.rows;
  }

  // What a row keeps of one chunk of the columns.
  Best<Real> best(std::int64_t part, std::int64_t row) const {
    const std::int64_t at = part * problem_.rows + row;
    return {kept_ + at * problem_.count, problem_.count, length_ + at};
  }

  // Rows of block a against the column blocks [b0, b1), in rising order.
  void search(std::int64_t a, std::int64_t part, std::int64_t b0, std::int64_t b1, Real* scratch) const {
    const int height = tiles_extent(a, problem_.rows, P::kRows);
    Real threshold[kBlock];
    for (int i = 0; i < height; ++i) {
      const std::int64_t row = a * kBlock + i;
      threshold[i] = static_cast<Real>(__builtin_inf());  // of rows past the end, which want nothing
      if (row >= problem_.rows) continue;
      const Best<Real> empty = best(part, row);
      *empty.length = 0;
      threshold[i] = empty.threshold();
    }
    for (std::int64_t b = b0; b < b1; ++b) {
      const int width = tiles_extent(b, problem_.cols, P::kCols);
      const BlockProduct<P> products(q_.block(a), k_.block(b), k_.steps, height, width, scratch);
      for (int j = 0; j < width; j += P::kCols) {
        for (int i = 0; i < height; i += P::kRows) tile(products, a, part, b, i, j, threshold);
      }
    }
    for (std::int64_t row = a * kBlock; row < end_of(a); ++row) best(part, row).sort();
  }

  FASTSSL_INLINE void tile(const BlockProduct<P>& products, std::int64_t a, std::int64_t part, std::int64_t b,
                           int i, int j, Real* threshold) const {
    Tile<P> c;
    products.tile(c, i, j);
    Ints found{};
    FASTSSL_UNROLL
    for (int r = 0; r < P::kRows; ++r) {
      const Vec worst = P::broadcast(threshold[i + r]);
      FASTSSL_UNROLL
      for (int v = 0; v < P::kVectors; ++v) found |= ~(c[r][v] <= worst);  // NaN too
    }
    if (any(found)) insert(c, a, part, b, i, j, threshold);
  }

  // Out of the way of the loop above, and through memory: lanes are looked at one by one.
  __attribute__((noinline)) void insert(const Tile<P>& c, std::int64_t a, std::int64_t part, std::int64_t b,
                                        int i, int j, Real* threshold) const {
    const std::int64_t first = b * kBlock + j, left = problem_.cols - first;
    const int width = left < P::kCols ? static_cast<int>(left) : P::kCols;
    for (int r = 0; r < P::kRows; ++r) {
      const std::int64_t row = a * kBlock + i + r;
      if (row >= problem_.rows) return;
      const Vec worst = P::broadcast(threshold[i + r]);
      Ints found{};
      for (int v = 0; v < P::kVectors; ++v) found |= ~(c[r][v] <= worst);
      if (!any(found)) continue;
      Real products[P::kCols];
      for (int v = 0; v < P::kVectors; ++v) P::store(products + v * P::kLanes, c[r][v]);
      const std::int64_t self = problem_.exclude_self ? problem_.row_offset + row - first : -1;
      const Best<Real> here = best(part, row);
      for (int at = 0; at < width; ++at) {
        if (!(products[at] <= threshold[i + r]) && at != self) {
          here.offer({products[at], first + at});
          threshold[i + r] = here.threshold();
        }
      }
    }
  }

  // A row's best of all chunks, each of which is in order.
  void merge(std::int64_t row, std::int64_t* out) const {
    constexpr std::int64_t kMostParts = 64;  // Rectangle makes at most 32
    std::int64_t taken[kMostParts] = {};
    for (std::int64_t n = 0; n < problem_.count; ++n) {
      std::int64_t winner = -1;
      const Candidate<Real>* first = nullptr;
      for (std::int64_t part = 0; part < rectangle_.chunks; ++part) {
        const Best<Real> list = best(part, row);
        if (taken[part] == *list.length) continue;
        const Candidate<Real>* head = list.items + taken[part];
        if (first == nullptr || head->before(*first)) {
          first = head;
          winner = part;
        }
      }
      out[n] = first->column;
      ++taken[winner];
    }
  }

  static FASTSSL_INLINE bool any(Ints mask) {
    std::uint64_t words[sizeof(Ints) / 8], all = 0;
    __builtin_memcpy(words, &mask, sizeof words);
    for (std::uint64_t word : words) all |= word;
    return all != 0;
  }

  const NeighborsProblem& problem_;
  Operand<P> q_, k_;  // k_ equals q_ where the columns are the rows
  Rectangle rectangle_;
  std::int64_t scratch_size_;
  Real* scratch_;          // [threads][scratch_size_]
  Candidate<Real>* kept_;  // [chunks][rows][count]: what rows keep of each chunk of columns
  std::int64_t* length_;   // [chunks][rows]
};

template <class P>
void run(const NeighborsProblem& p, std::int64_t* columns) {
  const double multiply_adds =
      static_cast<double>(p.rows) * static_cast<double>(p.cols) * static_cast<double>(p.dim);
  const std::int64_t tasks = ceil_div(p.rows, kBlock) * ceil_div(p.cols, kBlock);
  const int threads = threads_for(tasks < p.threads ? tasks : p.threads, multiply_adds);
  launch(
      threads, [&](Arena& arena) { return Search<P>(p, threads, arena); },
      [&](const Search<P>& search, Team& team) { search.run(team, columns); });
}

template <class I>
NeighborsKernels plain_kernels() {
  return {run<PlainProduct<I, float>>, run<PlainProduct<I, double>>, nullptr};
}

}  // namespace neighbors
}  // namespace FASTSSL_ISA
}  // namespace fastssl
