// AVX2 and FMA.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {

SoftTargetKernels soft_target_kernels() { return soft_target::make_kernels<32>(); }

}  // namespace avx2
}  // namespace fastssl
