// What every machine of the architecture has: SSE2 on x86-64, NEON on AArch64.
#define FASTSSL_ISA baseline
#include "kernels.h"

namespace fastssl {
namespace baseline {

MaskingKernels masking_kernels() { return masking::make_kernels<16>(); }

}  // namespace baseline
}  // namespace fastssl
