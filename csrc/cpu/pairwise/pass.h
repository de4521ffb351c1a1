// What the forward and the gradient share: packed operands, mask, shift, and who meets whom.
#pragma once

#include "cpu/pack.h"
#include "cpu/schedule.h"
#include "mask.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

// Inputs are only read; Rows serves outputs too.
inline char* address(const void* data) { return static_cast<char*>(const_cast<void*>(data)); }

inline Source rows_of(const PairwiseProblem& p) {
  const Rows rows{{address(p.q), address(p.q_other)}, {p.q_stride, p.q_other_stride}};
  return {rows, p.rows, p.dim, p.dtype, p.normalize};
}

inline Source columns_of(const PairwiseProblem& p) {
  if (p.k == nullptr) return rows_of(p);
  return {{{address(p.k), nullptr}, {p.k_stride, 0}}, p.cols, p.dim, p.dtype, p.normalize};
}

// Which operands are multiplied into a gradient, besides into similarities.
enum class Multiplied { kNone, kColumns, kBoth };

template <class P>
struct Pass {
  using Real = typename P::Real;
  using Signed = typename P::Signed;

  const PairwiseProblem& problem;
  Operand<P> q, k;                 // k equals q where the columns are the rows
  std::int64_t packed_col_blocks;  // by prepare(), besides the rows'
  bool shared;
  bool fixed_shift;  // by |s| instead of a running maximum
  // s log2(e), because exponents are in base 2, in two parts: one rounded factor would bend all exponents the
  // same way, and their sum, unlike that of random roundings, would show it.
  Real slope, slope_rest;
  Real shift;  // |s| log2(e)
  Signed* row_id = nullptr;
  Signed* col_id = nullptr;
  std::int64_t scratch_size;
  Real* scratch;  // [threads][scratch_size]

  // packs_columns: whether prepare() packs columns that are not the rows.
  Pass(const PairwiseProblem& p, int threads, Multiplied multiplied, Arena& arena, bool packs_columns = true)
      : problem(p),
        q(rows_of(p),
          multiplied == Multiplied::kBoth || (multiplied == Multiplied::kColumns && p.k == nullptr), arena),
        k(p.k == nullptr  ? q
          : packs_columns ? Operand<P>(columns_of(p), multiplied != Multiplied::kNone, arena)
                          : Operand<P>(columns_of(p))),
        packed_col_blocks(p.k == nullptr || !packs_columns ? 0 : k.blocks),
        shared(p.k == nullptr),
        fixed_shift(p.normalize && p.scale >= -kFixedShiftLimit && p.scale <= kFixedShiftLimit),
        slope(static_cast<Real>(p.scale * kLog2e)),
        slope_rest(static_cast<Real>(__builtin_fma(p.scale, kLog2e, -static_cast<double>(slope)) +
                                     p.scale * kLog2eRest)),
        shift(static_cast<Real>((p.scale < 0 ? -p.scale : p.scale) * kLog2e)),
        scratch_size(Operand<P>::scratch_size(p.dim)),
        scratch(arena.take<Real>(threads * scratch_size)) {
    if (p.positives == Positives::kKey) {
      row_id = arena.take<Signed>(q.padded);
      col_id = arena.take<Signed>(k.padded);
    }
  }

  // x log2(e) - base for similarities c. The rest comes last: by then what matters is small.
  template <class Base>
  FASTSSL_INLINE typename P::Vec exponent(typename P::Vec c, Base base) const {
    return (c * slope - base) + c * slope_rest;
  }

  // Of row block a and column block b.
  BlockProduct<P> product(std::int64_t a, std::int64_t b, int height, int width, Real* mine) const {
    return BlockProduct<P>(q.block(a), k.block(b), k.steps, height, width, mine);
  }

  Mask<P> mask() const { return Mask<P>(problem, row_id, col_id); }

  // Where both sides get sums from the same products, those of columns that are not the rows stand behind the
  // rows': each block, of whatever side, has a place of its own.
  std::int64_t first_col_place() const { return shared ? 0 : q.blocks; }
  std::int64_t places(bool mutual) const { return q.blocks + (mutual && !shared ? k.blocks : 0); }

  // The side of a place, and its block there.
  bool is_row(std::int64_t place) const { return place < q.blocks; }
  const Operand<P>& side(std::int64_t place) const { return is_row(place) ? q : k; }
  std::int64_t block_at(std::int64_t place) const { return is_row(place) ? place : place - q.blocks; }
  // Its rows without padding.
  std::int64_t valid_at(std::int64_t place) const {
    const std::int64_t left = side(place).source.count - block_at(place) * kBlock;
    return left < kBlock ? left : kBlock;
  }

  // Calls meet(row block, column block, whether its transpose counts too) for every pair, with the schedule
  // of places(true): no two at once share a place.
  template <class Meet>
  void play(const Tournament& tournament, Team& team, const Meet& meet) const {
    tournament.play(team, [&](std::int64_t a, std::int64_t b) {
      if (shared) {
        meet(a, b, a != b);
      } else if (is_row(a) && !is_row(b)) {
        meet(a, block_at(b), true);
      }
    });
  }

  Real* scratch_of(const Team& team) const { return scratch + team.thread() * scratch_size; }

  // Packs both operands, and calls rows(b) and cols(b) for each block of them: one phase for all that needs
  // no order.
  template <class Rows, class Cols>
  void prepare(Team& team, const Rows& rows, const Cols& cols) const {
    Real* mine = scratch_of(team);
    team.for_each(q.blocks + packed_col_blocks, [&](std::int64_t b) {
      const bool of_rows = b < q.blocks;
      const std::int64_t col_block = shared ? b : b - q.blocks;
      if (of_rows) {
        q.pack(b, mine);
        copy_ids(row_id, problem.row_id, b, problem.rows, -1);
        rows(b);
      }
      if (!of_rows) k.pack(col_block, mine);
      if (!of_rows || shared) {
        copy_ids(col_id, problem.col_id, col_block, problem.cols, -2);
        cols(col_block);
      }
    });
  }

 private:
  static void copy_ids(Signed* to, const std::int32_t* from, std::int64_t block, std::int64_t count,
                       Signed padding) {
    if (to == nullptr) return;
    for (std::int64_t i = block * kBlock; i < (block + 1) * kBlock; ++i)
      to[i] = i < count ? from[i] : padding;
  }
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
