// Runs every pairwise kernel of the chosen instruction set (FASTSSL_CPU_ISA) on small odd sizes with buffers
// of exactly the right length. Built with AddressSanitizer and UBSan: reading or writing outside of them ends
// the program. Outputs start as NaN and must come back finite.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/pairwise/pairwise.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

bool run(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t dim, Positives positives, bool same,
         double scale) {
  const std::int64_t q_stride = dim + rows % 3, k_stride = dim + 1;
  const std::vector<char> q = matrix(dtype, rows, dim, q_stride), k = matrix(dtype, cols, dim, k_stride);
  std::vector<std::int64_t> row_key(rows), col_key(cols);
  for (auto& key : row_key) key = std::rand() % 3;
  for (auto& key : col_key) key = std::rand() % 3;

  PairwiseProblem p{};
  p.q = q.data();
  p.k = same ? nullptr : k.data();
  p.rows = rows;
  p.cols = same ? rows : cols;
  p.dim = dim;
  p.q_stride = q_stride;
  p.k_stride = k_stride;
  p.dtype = dtype;
  p.scale = scale;
  p.normalize = true;
  p.positives = positives;
  p.row_key = row_key.data();
  p.col_key = same ? row_key.data() : col_key.data();
  p.exclude_self = positives == Positives::kPair;
  p.row_step = 1;
  p.threads = 2;

  const bool wide = dtype == DType::kFloat64;
  std::vector<char> lse = vector_of(dtype, rows, kNaN), positive = lse;
  std::vector<char> of_cols = vector_of(dtype, cols, kNaN);
  if (!same) {
    pairwise_logsumexp(p, true, {lse.data(), positive.data(), of_cols.data()});
    // Of a single row, column 0 has no pair left once that is excluded.
    const bool left_alone = p.exclude_self && rows == 1;
    if (!left_alone && !all_finite(of_cols, dtype == DType::kFloat64)) return false;
  }
  pairwise_logsumexp(p, true, {lse.data(), positive.data(), nullptr});
  // Of a single column, row 0 has no pair left once it is excluded itself: its log-sum is -inf.
  const bool alone = p.exclude_self && p.cols == 1;
  bool good = (alone || all_finite(lse, wide)) && all_finite(positive, wide);

  const std::vector<char> row_weight = vector_of(dtype, rows, 0.5), col_weight = vector_of(dtype, cols, 0.25);
  const std::vector<char> col_lse = vector_of(dtype, cols, scale);
  const GradTerms row{lse.data(), row_weight.data(), row_weight.data()};
  const GradTerms none{nullptr, nullptr, nullptr}, col{col_lse.data(), col_weight.data(), col_weight.data()};
  std::vector<char> dq(rows * dim * size_of(dtype), '\xff'), dscale = vector_of(dtype, 1, kNaN);
  pairwise_logsumexp_grad(p, true, row, same ? none : col, {dq.data(), dscale.data()});
  good = good && all_finite(dscale, wide) && (size_of(dtype) == 2 || all_finite(dq, wide));
  std::vector<char> dk(cols * dim * size_of(dtype), '\xff'), loss = vector_of(dtype, 1, kNaN), dbias = loss;
  const auto both_finite = [&] {
    return all_finite(loss, wide) && all_finite(dscale, wide) &&
           (size_of(dtype) == 2 || (all_finite(dq, wide) && all_finite(dk, wide)));
  };
  if (!same) {
    dq.assign(rows * dim * size_of(dtype), '\xff');
    dscale = vector_of(dtype, 1, kNaN);
    pairwise_sigmoid(p, true, -3, 0.5, {loss.data(), dq.data(), dk.data(), dscale.data(), dbias.data()});
    good = good && both_finite() && all_finite(dbias, wide);
    pairwise_sigmoid(p, true, -3, 0.5, {loss.data(), dq.data(), nullptr, dscale.data(), dbias.data()});
    good = good && both_finite();
    loss = vector_of(dtype, 1, kNaN);
    pairwise_sigmoid(p, true, -3, 0.5, {loss.data(), nullptr, nullptr, nullptr, nullptr});
    good = good && all_finite(loss, wide);
  }
  if (!same && rows == cols && positives != Positives::kPair) {
    dq.assign(rows * dim * size_of(dtype), '\xff');
    dk.assign(cols * dim * size_of(dtype), '\xff');
    loss = dscale = vector_of(dtype, 1, kNaN);
    pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), dq.data(), dk.data(), dscale.data()});
    good = good && both_finite();
    pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), dq.data(), nullptr, dscale.data()});
    good = good && both_finite();
    loss = vector_of(dtype, 1, kNaN);
    pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), nullptr, nullptr, nullptr});
    good = good && all_finite(loss, wide);
  }
  if (!same && scale <= kFixedShiftLimit) {
    const std::vector<char> own = matrix(dtype, rows, dim, k_stride);
    std::vector<char> losses = vector_of(dtype, rows, kNaN);
    p.positive = own.data();
    p.positive_stride = k_stride;
    p.exclude_positives = true;
    dq.assign(rows * dim * size_of(dtype), '\xff');
    dscale = vector_of(dtype, 1, kNaN);
    pairwise_bank(p, true, 0.5, {losses.data(), dq.data(), dscale.data()});
    good = good && all_finite(losses, wide) && all_finite(dscale, wide);
    good = good && (size_of(dtype) == 2 || all_finite(dq, wide));
    std::vector<std::int64_t> index(rows);  // at both ends there is no such column
    for (auto& place : index) place = std::rand() % (cols + 2) - 1;
    PairwiseProblem by_index = p;
    by_index.positives = Positives::kIndex;
    by_index.row_key = index.data();
    by_index.col_key = nullptr;
    by_index.exclude_self = false;
    losses = vector_of(dtype, rows, kNaN);
    pairwise_bank(by_index, true, 0.5, {losses.data(), dq.data(), dscale.data()});
    // Where the only column is the positive, which is left out, nothing is left but the positive itself.
    good = good && all_finite(losses, wide) && all_finite(dscale, wide);
  }
  if (same) {  // all rows in one matrix, and where they are even in two that take turns
    std::vector<char> other(rows / 2 * dim * size_of(dtype), '\xff');
    loss = vector_of(dtype, 1, kNaN);
    dq.assign(rows * dim * size_of(dtype), '\xff');
    pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), dq.data(), nullptr, dscale.data()});
    good = good && (alone || all_finite(loss, wide)) && (size_of(dtype) == 2 || all_finite(dq, wide));
    loss = vector_of(dtype, 1, kNaN);
    pairwise_loss(p, true, {0, row_weight.data(), row_weight.data()},
                  {loss.data(), dq.data(), nullptr, dscale.data()});
    good = good && (alone || all_finite(loss, wide));
    loss = vector_of(dtype, 1, kNaN);
    pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), nullptr, nullptr, nullptr});
    good = good && (alone || all_finite(loss, wide));
    if (rows % 2 == 0) {
      const std::vector<char> first = matrix(dtype, rows / 2, dim, q_stride),
                              second = matrix(dtype, rows / 2, dim, k_stride);
      p.q = first.data();
      p.q_other = second.data();
      p.q_other_stride = k_stride;
      dq.assign(rows / 2 * dim * size_of(dtype), '\xff');
      pairwise_loss(p, true, {0.5, nullptr, nullptr}, {loss.data(), dq.data(), other.data(), dscale.data()});
      good = good && all_finite(loss, wide);
      good = good && (size_of(dtype) == 2 || (all_finite(dq, wide) && all_finite(other, wide)));
    }
  }
  if (!good) {
    std::printf("not finite: dtype %d, %ld x %ld x %ld, positives %d, same %d, scale %g\n",
                static_cast<int>(dtype), static_cast<long>(rows), static_cast<long>(cols),
                static_cast<long>(dim), static_cast<int>(positives), same, scale);
  }
  return good;
}

}  // namespace

int main() {
  bool good = true;
  const std::int64_t counts[] = {1, 2, 33, 97, 200}, dims[] = {1, 31, 150};
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t rows : counts) {
      for (std::int64_t cols : counts) {
        for (std::int64_t dim : dims) {
          const auto positives = static_cast<Positives>(std::rand() % 4);
          const double scale = std::rand() % 2 == 0 ? 10 : 80;  // fixed and running maximum
          good = run(dtype, rows, cols, dim, positives, false, scale) && good;
          if (rows == cols) good = run(dtype, rows, rows, dim, Positives::kPair, true, scale) && good;
        }
      }
    }
  }
  std::puts(good ? "clean" : "failed");
  return good ? 0 : 1;
}
