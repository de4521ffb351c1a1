// Runs the neighbour search of the chosen instruction set (FASTSSL_CPU_ISA) on small odd sizes with buffers
// of exactly the right length. Built with AddressSanitizer and UBSan: reading or writing outside of them ends
// the program. Every row has to come back with different columns, none of them excluded or out of range.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "cpu/neighbors/neighbors.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

bool run(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t dim, std::int64_t count, bool same,
         bool exclude_self) {
  const std::int64_t q_stride = dim + rows % 3, k_stride = dim + 1;
  const std::vector<char> q = matrix(dtype, rows, dim, q_stride), k = matrix(dtype, cols, dim, k_stride);
  NeighborsProblem p{};
  p.q = q.data();
  p.k = same ? nullptr : k.data();
  p.rows = rows;
  p.cols = same ? rows : cols;
  p.dim = dim;
  p.q_stride = q_stride;
  p.k_stride = k_stride;
  p.dtype = dtype;
  p.exclude_self = exclude_self;
  p.row_offset = same ? 0 : cols / 2;  // with fewer columns than rows, some have no column of their own
  p.threads = 2;
  p.count = std::min(count, p.cols - (exclude_self ? 1 : 0));
  if (p.count < 1) return true;

  std::vector<std::int64_t> columns(rows * p.count, -1);
  nearest_neighbors(p, true, columns.data());
  bool good = true;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<std::int64_t> row(columns.begin() + i * p.count, columns.begin() + (i + 1) * p.count);
    std::sort(row.begin(), row.end());
    good = good && row.front() >= 0 && row.back() < p.cols;
    good = good && std::adjacent_find(row.begin(), row.end()) == row.end();
    good = good && !(exclude_self && std::binary_search(row.begin(), row.end(), p.row_offset + i));
  }
  if (!good) {
    std::printf("wrong columns: dtype %d, %ld x %ld x %ld, count %ld, same %d, exclude_self %d\n",
                static_cast<int>(dtype), static_cast<long>(rows), static_cast<long>(p.cols),
                static_cast<long>(dim), static_cast<long>(p.count), same, exclude_self);
  }
  return good;
}

}  // namespace

int main() {
  bool good = true;
  // 900 columns: several chunks, whose lists are merged
  const std::int64_t sizes[] = {1, 2, 31, 97, 900}, dims[] = {1, 33, 150}, counts[] = {1, 3, 150};
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t cols : sizes) {
      for (std::int64_t rows : {1, 2, 31, 97, 200}) {
        for (std::int64_t dim : dims) {
          for (std::int64_t count : counts) {
            good = run(dtype, rows, cols, dim, count, false, rows % 2 == 1) && good;
            if (rows == cols) good = run(dtype, rows, rows, dim, count, true, true) && good;
          }
        }
      }
    }
  }
  std::puts(good ? "clean" : "failed");
  return good ? 0 : 1;
}
