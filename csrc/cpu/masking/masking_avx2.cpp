// AVX2 and FMA.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {

MaskingKernels masking_kernels() { return masking::make_kernels<32>(); }

}  // namespace avx2
}  // namespace fastssl
