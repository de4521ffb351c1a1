// AVX-512 (F, BW, VL, DQ).
#define FASTSSL_ISA avx512
#include "kernels.h"

namespace fastssl {
namespace avx512 {

MaskingKernels masking_kernels() { return masking::make_kernels<64>(); }

}  // namespace avx512
}  // namespace fastssl
