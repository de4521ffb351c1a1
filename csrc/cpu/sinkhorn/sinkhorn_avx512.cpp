// AVX-512 (F, BW, VL, DQ).
#define FASTSSL_ISA avx512
#include "kernels.h"

namespace fastssl {
namespace avx512 {

LogSumKernels log_sum_kernels() { return sinkhorn::make_kernels<64>(); }

}  // namespace avx512
}  // namespace fastssl
