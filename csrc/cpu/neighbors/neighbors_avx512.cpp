// AVX-512 (F, BW, VL, DQ): 32 registers, 24 of them sums.
#define FASTSSL_ISA avx512
#include "kernels.h"

namespace fastssl {
namespace avx512 {
namespace neighbors {

struct Shape {
  static constexpr int kVectorBytes = 64, kTileRows = 12, kTileVectors = 2;
};

}  // namespace neighbors

NeighborsKernels neighbors_kernels() { return neighbors::plain_kernels<neighbors::Shape>(); }

}  // namespace avx512
}  // namespace fastssl
