// AVX-512 with bfloat16 dot products, for bfloat16 inputs; everything else is avx512's.
#define FASTSSL_ISA avx512_bf16
#include "kernels.h"
#include "tile_bf16.h"

namespace fastssl {
namespace avx512_bf16 {

struct Shape {
  static constexpr int kTileRows = 12;
};

PairwiseKernels pairwise_kernels() {
  using B = Bfloat16Product<Shape>;
  return {nullptr, nullptr, logsumexp<B>, nullptr, nullptr, grad<B>};
}

}  // namespace avx512_bf16
}  // namespace fastssl
