// AVX2 and FMA: 16 registers, 12 of them sums.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {
namespace neighbors {

struct Shape {
  static constexpr int kVectorBytes = 32, kTileRows = 6, kTileVectors = 2;
};

}  // namespace neighbors

NeighborsKernels neighbors_kernels() { return neighbors::plain_kernels<neighbors::Shape>(); }

}  // namespace avx2
}  // namespace fastssl
