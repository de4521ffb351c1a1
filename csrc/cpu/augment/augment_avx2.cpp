// AVX2 and FMA.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {

AugmentKernel augment_kernel() { return augment::run<Simd<float, 32>>; }

}  // namespace avx2
}  // namespace fastssl
