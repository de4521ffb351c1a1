#include "pairwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace fastssl {
namespace {

PairwiseKernels make_kernels() {
  PairwiseKernels kernels = FASTSSL_BEST_OF(pairwise_kernels);
#ifdef FASTSSL_HAVE_AVX512_BF16
  if (select_isa() == Isa::kAvx512Bf16) kernels.bfloat16 = avx512_bf16::pairwise_kernels().bfloat16;
#endif
  return kernels;
}

const PairwiseKernels& kernels() {
  static const PairwiseKernels chosen = make_kernels();
  return chosen;
}

// int64 keys compare at half the speed of floats, so they are renumbered once per call: equal numbers if and
// only if equal keys. A row whose key no column has gets -1.
struct DenseKeys {
  std::vector<std::int32_t> row, col;

  void assign(const PairwiseProblem& p) {
    std::vector<std::int64_t> known(p.col_key, p.col_key + p.cols);
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    const auto number = [&](std::int64_t key) -> std::int32_t {
      const auto found = std::lower_bound(known.begin(), known.end(), key);
      return found != known.end() && *found == key ? static_cast<std::int32_t>(found - known.begin()) : -1;
    };
    row.resize(p.rows);
    col.resize(p.cols);
    std::transform(p.row_key, p.row_key + p.rows, row.begin(), number);
    std::transform(p.col_key, p.col_key + p.cols, col.begin(), number);
  }
};

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void check_and_complete(PairwiseProblem& p, DenseKeys& keys) {
  require(p.q != nullptr, "pairwise: q must not be null");
  require(p.rows >= 1 && p.cols >= 1 && p.dim >= 1, "pairwise: rows, cols and dim must be at least 1");
  require(p.k != nullptr || p.rows == p.cols, "pairwise: without k, cols must equal rows");
  require(p.q_other == nullptr || p.rows % 2 == 0, "pairwise: with q_other, rows must be even");
  require(p.positives >= Positives::kNone && p.positives <= Positives::kIndex,
          "pairwise: unknown rule of positives");
  require(p.positives != Positives::kKey || (p.row_key != nullptr && p.col_key != nullptr),
          "pairwise: positives by key need row_key and col_key");
  require(p.positives != Positives::kIndex || (p.row_key != nullptr && p.k != nullptr),
          "pairwise: positives by index need row_key and k");
  require(p.cols < (std::int64_t{1} << 31) && p.rows < (std::int64_t{1} << 31),
          "pairwise: rows and cols must be below 2^31");
  const bool by_key = p.positives == Positives::kKey;
  const bool same_keys =
      !by_key || p.row_key == p.col_key ||
      (p.rows == p.cols && std::memcmp(p.row_key, p.col_key, p.rows * sizeof(std::int64_t)) == 0);
  p.symmetric = p.k == nullptr && p.row_step == 1 && p.row_offset == p.col_offset && same_keys;
  if (by_key) {
    keys.assign(p);
    p.row_id = keys.row.data();
    p.col_id = keys.col.data();
  }
}

const PairwiseProducts& pick(const PairwiseProblem& p, bool allow_bfloat16_product) {
  const PairwiseKernels& all = kernels();
  const bool has_bfloat16 = all.bfloat16.logsumexp != nullptr;
  switch (p.dtype) {
    case DType::kFloat64:
      return all.float64;
    case DType::kBFloat16:
      return has_bfloat16 ? all.bfloat16 : all.float32;
    case DType::kFloat32:
      return allow_bfloat16_product && has_bfloat16 ? all.bfloat16 : all.float32;
    case DType::kFloat16:
      return all.float32;
  }
  throw std::invalid_argument("pairwise: unknown dtype");
}

// The loss without gradients.
template <class Real>
void sum_losses(const PairwiseProblem& p, LogsumexpKernel kernel, const LossWeights& weights, void* loss) {
  const bool two_sides = p.k != nullptr;
  std::vector<Real> row_lse(p.rows), positive(p.rows), col_lse(two_sides ? p.cols : 0);
  kernel(p, {row_lse.data(), positive.data(), two_sides ? col_lse.data() : nullptr});
  double sum = 0;
  if (weights.log_sum != nullptr) {
    const auto *w = static_cast<const Real*>(weights.log_sum),
               *of_positive = static_cast<const Real*>(weights.positive);
    for (std::int64_t i = 0; i < p.rows; ++i) {
      sum += (w[i] == 0 ? 0 : static_cast<double>(w[i]) * row_lse[i]) +
             static_cast<double>(of_positive[i]) * positive[i];
    }
  } else {
    for (Real lse : row_lse) sum += static_cast<double>(lse);
    for (Real lse : col_lse) sum += static_cast<double>(lse);
    for (Real logit : positive) sum -= (two_sides ? 2 : 1) * static_cast<double>(logit);
    sum *= weights.all;
  }
  *static_cast<Real*>(loss) = static_cast<Real>(sum);
}

}  // namespace

void pairwise_logsumexp(PairwiseProblem p, bool allow_bfloat16_product, const LogsumexpOutputs& outputs) {
  DenseKeys keys;
  check_and_complete(p, keys);
  require(outputs.row_lse != nullptr && outputs.positive != nullptr,
          "pairwise_logsumexp: outputs must not be null");
  require(outputs.col_lse == nullptr || p.k != nullptr, "pairwise_logsumexp: col_lse needs k");
  pick(p, allow_bfloat16_product).logsumexp(p, outputs);
}

void pairwise_logsumexp_grad(PairwiseProblem p, bool allow_bfloat16_product, const GradTerms& row,
                             const GradTerms& col, const GradOutputs& outputs) {
  DenseKeys keys;
  check_and_complete(p, keys);
  require(outputs.dq != nullptr && outputs.dscale != nullptr,
          "pairwise_logsumexp_grad: outputs must not be null");
  require((row.lse == nullptr) == (row.weight == nullptr) && (col.lse == nullptr) == (col.weight == nullptr),
          "pairwise_logsumexp_grad: a log-sum needs its weight and a weight its log-sum");
  // Without k and without column terms, the columns' terms are the rows'.
  const bool no_col = col.lse == nullptr && col.positive_weight == nullptr;
  const GradTerms& columns = p.k == nullptr && no_col ? row : col;
  if (columns.lse != row.lse || columns.weight != row.weight ||
      columns.positive_weight != row.positive_weight) {
    p.symmetric = false;  // W and its transpose would differ
  }
  pick(p, allow_bfloat16_product).grad(p, row, columns, outputs);
}

void pairwise_loss(PairwiseProblem p, bool allow_bfloat16_product, const LossWeights& weights,
                   const LossOutputs& outputs) {
  DenseKeys keys;
  check_and_complete(p, keys);
  require(p.symmetric || (p.k != nullptr && p.positives != Positives::kPair && p.rows == p.cols),
          "pairwise_loss: the columns must be the rows, or as many");
  require(p.k == nullptr || p.q_other == nullptr, "pairwise_loss: k and q_other exclude each other");
  require(outputs.loss != nullptr, "pairwise_loss: loss must not be null");
  require((weights.log_sum == nullptr) == (weights.positive == nullptr) &&
              (weights.log_sum == nullptr || p.k == nullptr),
          "pairwise_loss: weights of log-sums and of positives go together, and not with k");
  const PairwiseProducts& chosen = pick(p, allow_bfloat16_product);
  if (outputs.dq == nullptr) {
    (p.dtype == DType::kFloat64 ? sum_losses<double> : sum_losses<float>)(p, chosen.logsumexp, weights,
                                                                          outputs.loss);
    return;
  }
  require(outputs.dscale != nullptr, "pairwise_loss: with dq, dscale must not be null");
  require(p.q_other == nullptr || outputs.dq_other != nullptr, "pairwise_loss: q_other needs dq_other");
  require(outputs.dq_other == nullptr || p.q_other != nullptr || p.k != nullptr,
          "pairwise_loss: dq_other needs q_other or k");
  chosen.loss(p, weights, outputs);
}

void pairwise_bank(PairwiseProblem p, bool allow_bfloat16_product, double weight,
                   const BankOutputs& outputs) {
  DenseKeys keys;
  check_and_complete(p, keys);
  require(p.k != nullptr && p.positive != nullptr, "pairwise_bank: k and positive must not be null");
  require(p.normalize && std::abs(p.scale) <= kFixedShiftLimit,
          "pairwise_bank: needs normalised rows and a scale of at most 30");
  require(outputs.loss != nullptr && outputs.dq != nullptr && outputs.dscale != nullptr,
          "pairwise_bank: outputs must not be null");
  pick(p, allow_bfloat16_product).bank(p, weight, outputs);
}

void pairwise_sigmoid(PairwiseProblem p, bool allow_bfloat16_product, double bias, double weight,
                      const SigmoidOutputs& outputs) {
  DenseKeys keys;
  check_and_complete(p, keys);
  require(p.k != nullptr, "pairwise_sigmoid: k must not be null");
  require(outputs.loss != nullptr, "pairwise_sigmoid: loss must not be null");
  require(outputs.dq == nullptr || (outputs.dscale != nullptr && outputs.dbias != nullptr),
          "pairwise_sigmoid: with dq, dscale and dbias must not be null");
  pick(p, allow_bfloat16_product).sigmoid(p, bias, weight, outputs);
}

}  // namespace fastssl
