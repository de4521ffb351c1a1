// The nearest rows by inner product: arguments, and the table of kernels of one instruction set.
//
// For rows q [M, D] and columns k [N, D], every row's `count` columns with the largest c_ij = q_i . k_j,
// largest first. Equal products come in the order of their columns; NaN counts as larger than any number.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

struct NeighborsProblem {
  const void* q;  // [rows, dim], `dtype`, q_stride elements from row to row
  const void* k;  // [cols, dim], or null: the columns are q itself
  std::int64_t rows, cols, dim, q_stride, k_stride;
  DType dtype;
  std::int64_t count;       // columns wanted of each row
  bool exclude_self;        // row i never gets column row_offset + i
  std::int64_t row_offset;  // at least 0
  std::int64_t threads;
};

// columns: [rows, count].
using NeighborsKernel = void (*)(const NeighborsProblem&, std::int64_t* columns);

// One entry per arithmetic of the product. A null bfloat16 entry: the instruction set has no such product.
struct NeighborsKernels {
  NeighborsKernel float32, float64, bfloat16;
};

namespace baseline {
NeighborsKernels neighbors_kernels();
}
namespace avx2 {
NeighborsKernels neighbors_kernels();
}
namespace avx512 {
NeighborsKernels neighbors_kernels();
}
namespace avx512_bf16 {
NeighborsKernels neighbors_kernels();  // only the bfloat16 entry
}

// Checks the arguments (std::invalid_argument), picks the kernel and runs it. Inputs of bfloat16 take the
// bfloat16 product where the machine has one, inputs of float32 do if `allow_bfloat16_product`.
void nearest_neighbors(const NeighborsProblem& problem, bool allow_bfloat16_product, std::int64_t* columns);

}  // namespace fastssl
