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
  return {{}, {}, pairwise::with_product<Bfloat16Product<pairwise::Shape>>()};
}

}  // namespace avx512_bf16
}  // namespace fastssl
