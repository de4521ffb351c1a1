#include "sinkhorn.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace fastssl {

void potential_logsumexp(const LogSumProblem& p, void* log_sums) {
  if (p.logits == nullptr || log_sums == nullptr)
    throw std::invalid_argument("potential_logsumexp: logits and log_sums must not be null");
  if (p.rows < 1 || p.cols < 1)
    throw std::invalid_argument("potential_logsumexp: rows and cols must be at least 1");
  static const LogSumKernels kernels = FASTSSL_BEST_OF(log_sum_kernels);
  (p.dtype == DType::kFloat64 ? kernels.float64 : kernels.float32)(p, log_sums);
}

}  // namespace fastssl
