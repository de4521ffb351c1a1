// What every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define FASTSSL_ISA baseline
#include "kernels.h"

namespace fastssl {
namespace baseline {
namespace neighbors {

struct Shape {
  static constexpr int kVectorBytes = 16, kTileVectors = 2;
#if defined(__aarch64__)
  static constexpr int kTileRows = 12;  // 24 of 32 registers
#else
  static constexpr int kTileRows = 6;  // 12 of 16
#endif
};

}  // namespace neighbors

NeighborsKernels neighbors_kernels() { return neighbors::plain_kernels<neighbors::Shape>(); }

}  // namespace baseline
}  // namespace fastssl
