// AVX2 and FMA: 16 registers, 12 of them sums.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {
namespace pairwise {

struct Shape {
  static constexpr int kVectorBytes = 32, kTileRows = 6, kTileVectors = 2;
};

}  // namespace pairwise

PairwiseKernels pairwise_kernels() { return pairwise::plain_kernels<pairwise::Shape>(); }

}  // namespace avx2
}  // namespace fastssl
