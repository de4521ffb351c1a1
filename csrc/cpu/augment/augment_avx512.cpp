// AVX-512 (F, BW, VL, DQ).
#define FASTSSL_ISA avx512
#include "kernels.h"

namespace fastssl {
namespace avx512 {

AugmentKernel augment_kernel() { return augment::run<Simd<float, 64>>; }

}  // namespace avx512
}  // namespace fastssl
