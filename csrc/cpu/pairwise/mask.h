// Which pairs of a tile are in the log-sum and which match.
#pragma once

#include "cpu/tile.h"
#include "pairwise.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace pairwise {

template <class P>
class Mask {
 public:
  using Ints = typename P::Ints;
  using Signed = typename P::Signed;

  // row_id [padded rows] and col_id [padded cols] only for positives by key; padding must match nothing.
  Mask(const PairwiseProblem& p, const Signed* row_id, const Signed* col_id)
      : rule_(p.positives),
        exclude_self_(p.exclude_self),
        exclude_positives_(p.exclude_positives),
        rows_(p.rows),
        cols_(p.cols),
        row_offset_(p.row_offset),
        col_offset_(p.col_offset),
        row_step_(p.row_step),
        row_index_(p.positives == Positives::kIndex ? p.row_key : nullptr),
        row_id_(row_id),
        col_id_(col_id) {}

  // May the tile [i, i + kRows) x [j, j + kCols) hold a pair that is excluded, matched or out of range? Most
  // hold none.
  bool touches(std::int64_t i, std::int64_t j) const {
    if (i + P::kRows > rows_ || j + P::kCols > cols_ || rule_ == Positives::kKey) return true;
    if (!exclude_self_ && rule_ == Positives::kNone) return false;
    if (rule_ == Positives::kIndex && touches_index(i, col_offset_ + j)) return true;
    if (rule_ == Positives::kIndex && !exclude_self_) return false;
    const std::int64_t first = row_offset_ + row_step_ * i, last = first + row_step_ * (P::kRows - 1);
    const std::int64_t low = first < last ? first : last, high = first < last ? last : first;
    const std::int64_t column = col_offset_ + j;
    return low - 1 < column + P::kCols && column <= high + 1;  // 1: the other row of a pair
  }

  // For row i and the columns [j, j + kCols): all ones where a pair is in the log-sum, and where it matches.
  FASTSSL_INLINE void row(std::int64_t i, std::int64_t j, Ints (&in_sum)[P::kVectors],
                          Ints (&matched)[P::kVectors]) const {
    const std::int64_t index = row_offset_ + row_step_ * i, column = col_offset_ + j;
    const std::int64_t left = i < rows_ ? cols_ - j : 0;
    const Ints valid_lanes = P::broadcast_ints(static_cast<Signed>(left < P::kCols ? left : P::kCols));
    const Ints self_lane = P::broadcast_ints(exclude_self_ ? lane_of(index - column) : -1);
    Ints match_lane = P::broadcast_ints(-1);
    if (rule_ == Positives::kDiagonal) match_lane = P::broadcast_ints(lane_of(index - column));
    if (rule_ == Positives::kIndex && i < rows_)
      match_lane = P::broadcast_ints(lane_of(row_index_[i] - column));
    if (rule_ == Positives::kPair) match_lane = P::broadcast_ints(lane_of((index ^ 1) - column));
    FASTSSL_UNROLL
    for (int v = 0; v < P::kVectors; ++v) {
      const Ints lane = P::lane_numbers() + static_cast<Signed>(v * P::kLanes);
      const Ints allowed = (lane < valid_lanes) & (lane != self_lane);
      Ints match = lane == match_lane;
      if (rule_ == Positives::kKey)
        match = P::load_ints(col_id_ + j + v * P::kLanes) == P::broadcast_ints(row_id_[i]);
      matched[v] = match & allowed;
      in_sum[v] = exclude_positives_ ? allowed & ~match : allowed;
    }
  }

 private:
  bool touches_index(std::int64_t i, std::int64_t column) const {
    bool any = false;
    for (int r = 0; r < P::kRows; ++r) any |= lane_of(row_index_[i + r] - column) >= 0;
    return any;
  }

  static Signed lane_of(std::int64_t distance) {
    return distance >= 0 && distance < P::kCols ? static_cast<Signed>(distance) : -1;
  }

  Positives rule_;
  bool exclude_self_, exclude_positives_;
  std::int64_t rows_, cols_, row_offset_, col_offset_, row_step_;
  const std::int64_t* row_index_;  // null, or the column of each row's positive
  const Signed* row_id_;
  const Signed* col_id_;
};

}  // namespace pairwise
}  // namespace FASTSSL_ISA
}  // namespace fastssl
