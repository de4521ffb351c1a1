// Runs every kernel of the chosen instruction set (FASTSSL_CPU_ISA) on small odd sizes with buffers of
// exactly the right length. Built with AddressSanitizer and UBSan: reading or writing outside of them ends
// the program. Outputs start as NaN and must come back finite.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/pairwise.h"

namespace {

using namespace fastssl;

const double kNaN = std::numeric_limits<double>::quiet_NaN();

double uniform() { return std::rand() / (RAND_MAX + 1.0) - 0.5; }

std::size_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// [rows, dim] with `stride`, nothing after the last element. Half precision: the numbers +-1 and +-2.
std::vector<char> matrix(DType dtype, std::int64_t rows, std::int64_t dim, std::int64_t stride) {
  std::vector<char> bytes(((rows - 1) * stride + dim) * size_of(dtype));
  for (std::size_t at = 0; at < bytes.size(); at += size_of(dtype)) {
    const double x = uniform();
    const float narrow = static_cast<float>(x);
    const std::uint16_t one = dtype == DType::kBFloat16 ? 0x3f80 : 0x3c00;
    const std::uint16_t half =
        static_cast<std::uint16_t>((x < 0 ? 0x8000 : 0) | (std::fabs(x) < 0.25 ? one : 0x4000));
    const void* from = dtype == DType::kFloat64   ? static_cast<const void*>(&x)
                       : dtype == DType::kFloat32 ? static_cast<const void*>(&narrow)
                                                  : &half;
    std::memcpy(bytes.data() + at, from, size_of(dtype));
  }
  return bytes;
}

// Real numbers: double for float64, else float.
std::vector<char> vector_of(DType dtype, std::int64_t count, double value) {
  const std::size_t width = dtype == DType::kFloat64 ? 8 : 4;
  std::vector<char> bytes(count * width);
  for (std::int64_t i = 0; i < count; ++i) {
    const float narrow = static_cast<float>(value);
    std::memcpy(bytes.data() + i * width, width == 8 ? static_cast<const void*>(&value) : &narrow, width);
  }
  return bytes;
}

bool all_finite(const std::vector<char>& bytes, bool wide) {
  for (std::size_t at = 0; at < bytes.size(); at += wide ? 8 : 4) {
    double x = 0;
    float narrow = 0;
    std::memcpy(wide ? static_cast<void*>(&x) : &narrow, bytes.data() + at, wide ? 8 : 4);
    if (!std::isfinite(wide ? x : narrow)) return false;
  }
  return true;
}

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
  pairwise_logsumexp(p, true, {lse.data(), positive.data()});
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
  const std::int64_t counts[] = {1, 2, 31, 33, 97, 200}, dims[] = {1, 3, 31, 100};
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
