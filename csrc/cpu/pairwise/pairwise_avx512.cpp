// AVX-512 (F, BW, VL, DQ): 32 registers, 24 of them sums.
#define FASTSSL_ISA avx512
#include "kernels.h"

namespace fastssl {
namespace avx512 {
namespace pairwise {

struct Shape {
  static constexpr int kVectorBytes = 64, kTileRows = 12, kTileVectors = 2;
};

}  // namespace pairwise

PairwiseKernels pairwise_kernels() { return pairwise::plain_kernels<pairwise::Shape>(); }

}  // namespace avx512
}  // namespace fastssl
