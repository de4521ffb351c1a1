// AVX-512 with bfloat16 dot products, for bfloat16 inputs; everything else is avx512's.
#define FASTSSL_ISA avx512_bf16
#include "cpu/tile_bf16.h"
#include "kernels.h"

namespace fastssl {
namespace avx512_bf16 {
namespace pairwise {

struct Shape {
  static constexpr int kTileRows = 12;
};

}  // namespace pairwise

PairwiseKernels pairwise_kernels() {
  using B = Bfloat16Product<pairwise::Shape>;
  return {nullptr, nullptr, pairwise::logsumexp<B>, nullptr, nullptr, pairwise::grad<B>,
          nullptr, nullptr, pairwise::loss<B>,      nullptr, nullptr, pairwise::bank<B>};
}

}  // namespace avx512_bf16
}  // namespace fastssl
