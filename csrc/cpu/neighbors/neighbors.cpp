#include "neighbors.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace fastssl {
namespace {

NeighborsKernels make_kernels() {
  NeighborsKernels kernels = FASTSSL_BEST_OF(neighbors_kernels);
#ifdef FASTSSL_HAVE_AVX512_BF16
  if (select_isa() == Isa::kAvx512Bf16) kernels.bfloat16 = avx512_bf16::neighbors_kernels().bfloat16;
#endif
  return kernels;
}

const NeighborsKernels& kernels() {
  static const NeighborsKernels chosen = make_kernels();
  return chosen;
}

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

NeighborsKernel pick(DType dtype, bool allow_bfloat16_product) {
  const NeighborsKernels& all = kernels();
  switch (dtype) {
    case DType::kFloat64:
      return all.float64;
    case DType::kBFloat16:
      return all.bfloat16 != nullptr ? all.bfloat16 : all.float32;
    case DType::kFloat32:
      return allow_bfloat16_product && all.bfloat16 != nullptr ? all.bfloat16 : all.float32;
    case DType::kFloat16:
      return all.float32;
  }
  throw std::invalid_argument("nearest_neighbors: unknown dtype");
}

}  // namespace

void nearest_neighbors(const NeighborsProblem& p, bool allow_bfloat16_product, std::int64_t* columns) {
  require(p.q != nullptr && columns != nullptr, "nearest_neighbors: q and columns must not be null");
  require(p.rows >= 1 && p.cols >= 1 && p.dim >= 1,
          "nearest_neighbors: rows, cols and dim must be at least 1");
  require(p.k != nullptr || p.rows == p.cols, "nearest_neighbors: without k, cols must equal rows");
  require(p.row_offset >= 0, "nearest_neighbors: row_offset must be at least 0");
  require(p.count >= 1 && p.count <= p.cols - (p.exclude_self ? 1 : 0),
          "nearest_neighbors: count must be between 1 and the number of columns that a row may get");
  pick(p.dtype, allow_bfloat16_product)(p, columns);
}

}  // namespace fastssl
