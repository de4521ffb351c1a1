// Log-sums over the rows or columns of a matrix of logits, less the other side's potentials: arguments, and
// the table of kernels of one instruction set.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// Real is float, or double where the logits are.
struct LogSumProblem {
  const void* logits;  // [rows, cols], `dtype`, stride elements from row to row
  std::int64_t rows, cols, stride;
  DType dtype;
  const void* potential;  // Real: [cols] for sums over columns, [rows] for sums over rows; or null
  double scale;
  bool over_columns;  // log sum_k exp(scale x_rk - potential_k), [rows]; else over r, [cols]
  std::int64_t threads;
};

using LogSumKernel = void (*)(const LogSumProblem&, void* log_sums);

struct LogSumKernels {
  LogSumKernel float32, float64;  // by Real
};

namespace baseline {
LogSumKernels log_sum_kernels();
}
namespace avx2 {
LogSumKernels log_sum_kernels();
}
namespace avx512 {
LogSumKernels log_sum_kernels();
}

// Checks the arguments (std::invalid_argument), picks the kernel and runs it.
void potential_logsumexp(const LogSumProblem& problem, void* log_sums);

}  // namespace fastssl
