// AVX2 and FMA.
#define FASTSSL_ISA avx2
#include "kernels.h"

namespace fastssl {
namespace avx2 {

LogSumKernels log_sum_kernels() { return sinkhorn::make_kernels<32>(); }

}  // namespace avx2
}  // namespace fastssl
