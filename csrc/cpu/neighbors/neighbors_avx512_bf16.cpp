// AVX-512 with bfloat16 dot products, for bfloat16 inputs; everything else is avx512's.
#define FASTSSL_ISA avx512_bf16
#include "cpu/tile_bf16.h"
#include "kernels.h"

namespace fastssl {
namespace avx512_bf16 {
namespace neighbors {

struct Shape {
  static constexpr int kTileRows = 12;
};

}  // namespace neighbors

NeighborsKernels neighbors_kernels() {
  return {nullptr, nullptr, neighbors::run<Bfloat16Product<neighbors::Shape>>};
}

}  // namespace avx512_bf16
}  // namespace fastssl
