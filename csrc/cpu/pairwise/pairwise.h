// The pairwise log-sum-exp, its gradient, and losses with their gradients: arguments, and the table of
// kernels of one instruction set.
//
// For rows q [M, D] and columns k [N, D], with unit rows q^ and k^ where `normalize` is set:
//   c_ij = q^_i . k^_j,  x_ij = s c_ij,
//   row_lse_i = log sum_j exp(x_ij) over the pairs in the log-sum,  positive_i = sum of x_ij over the matched
//   pairs.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// Which pairs (i, j) match, by global row index I and column index J. Numbers shared with
// fastssl/ops/pairwise/cpp.py.
enum class Positives : int {
  kNone = 0,      // never
  kDiagonal = 1,  // J == I
  kPair = 2,      // J == I ^ 1
  kKey = 3,       // the same key
  kIndex = 4      // J == row_key[i], whatever row_offset says
};

struct PairwiseProblem {
  const void* q;  // [rows, dim], `dtype`, q_stride elements from row to row
  const void* k;  // [cols, dim], or null: the columns are q itself
  std::int64_t rows, cols, dim, q_stride, k_stride;
  const void* q_other;  // null, or [rows / 2, dim]: row 2n is row n of q and row 2n + 1 row n of q_other
  std::int64_t q_other_stride;
  DType dtype;
  double scale;  // s
  bool normalize;
  Positives positives;
  const std::int64_t* row_key;  // [rows], for Positives::kKey and kIndex
  const std::int64_t* col_key;  // [cols]
  const void* positive;         // null, or [rows, dim]: each row's positive, for pairwise_bank
  std::int64_t positive_stride;
  bool exclude_self, exclude_positives;
  std::int64_t row_offset, col_offset, row_step;  // I = row_offset + row_step i, J = col_offset + j
  std::int64_t threads;

  // Filled in by pairwise.cpp; callers leave them zero.
  bool symmetric;              // the columns are the rows, and so are their indices and keys
  const std::int32_t* row_id;  // keys renumbered densely; -1 where a row's key is no column's
  const std::int32_t* col_id;
};

// Real is float, or double where the inputs are.
struct LogsumexpOutputs {
  void* row_lse;   // [rows] Real
  void* positive;  // [rows] Real
  void* col_lse;   // null, or [cols] Real: of the columns over the rows, from the same products; needs k
};

struct GradTerms {
  const void* lse;              // Real, or null together with weight
  const void* weight;           // Real
  const void* positive_weight;  // Real, or null
};

struct GradOutputs {
  void* dq;      // [rows, dim], `dtype`, contiguous
  void* dscale;  // [] Real
};

// What a loss weighs: every log-sum by `all` and every positive by minus that, or each by its own.
struct LossWeights {
  double all;
  const void* log_sum;   // null, or [rows] Real: only without k. Where it is 0 the log-sum is not looked at.
  const void* positive;  // [rows] Real, with log_sum
};

struct LossOutputs {
  void* loss;  // [] Real: the weighted sum of log-sums and positives over the rows and, with k, over the
               // columns
  // All null where no gradient is wanted.
  void* dq;        // [rows, dim] or, with q_other, [rows / 2, dim]; `dtype`, contiguous
  void* dq_other;  // with q_other: [rows / 2, dim]; with k: [cols, dim], or null: of the rows alone
  void* dscale;    // [] Real: d loss / d s
};

struct SigmoidOutputs {
  void* loss;  // [] Real: weight x the sum over all pairs of log(1 + exp(x)), or exp(-x) where they match
  // All null where no gradient is wanted.
  void* dq;        // [rows, dim], `dtype`, contiguous
  void* dq_other;  // [cols, dim]: of the columns; or null
  void* dscale;    // [] Real: d loss / d s
  void* dbias;     // [] Real: d loss / d bias
};

struct BankOutputs {
  // [rows] Real: log(exp(x_positive) + sum over the pairs in the log-sum) - x_positive. A row whose index is
  // no column's has no positive: its loss is the log-sum.
  void* loss;
  void* dq;      // [rows, dim], `dtype`, contiguous: the gradient of weight x the sum of the losses
  void* dscale;  // [] Real: its derivative by s
};

// The largest |s| with a fixed shift. With unit rows |x| <= |s|: exp(x - |s|) does not overflow, and being at
// least exp(-60) loses nothing. The gradient's factor weight exp(|s| - lse) is what sets the limit: a row
// whose only pair is its opposite has lse = -|s|, and exp(60) = 1e26 leaves 1e12 in float32 for the weight,
// which a loss scaler multiplies by 2^16 and more.
constexpr double kFixedShiftLimit = 30;

using LogsumexpKernel = void (*)(const PairwiseProblem&, const LogsumexpOutputs&);
using GradKernel = void (*)(const PairwiseProblem&, const GradTerms& row, const GradTerms& col,
                            const GradOutputs&);
using LossKernel = void (*)(const PairwiseProblem&, const LossWeights&, const LossOutputs&);
using BankKernel = void (*)(const PairwiseProblem&, double weight, const BankOutputs&);
using SigmoidKernel = void (*)(const PairwiseProblem&, double bias, double weight, const SigmoidOutputs&);

// Of one arithmetic of the two products.
struct PairwiseProducts {
  LogsumexpKernel logsumexp;
  GradKernel grad;
  LossKernel loss;
  BankKernel bank;
  SigmoidKernel sigmoid;
};

// bfloat16 is null where the instruction set has no such product.
struct PairwiseKernels {
  PairwiseProducts float32, float64, bfloat16;
};

namespace baseline {
PairwiseKernels pairwise_kernels();
}
namespace avx2 {
PairwiseKernels pairwise_kernels();
}
namespace avx512 {
PairwiseKernels pairwise_kernels();
}
namespace avx512_bf16 {
PairwiseKernels pairwise_kernels();  // only bfloat16
}

// Checks the arguments (std::invalid_argument), picks the kernel and runs it. Inputs of bfloat16 take the
// bfloat16 product where the machine has one, inputs of float32 do if `allow_bfloat16_product`.
void pairwise_logsumexp(PairwiseProblem problem, bool allow_bfloat16_product,
                        const LogsumexpOutputs& outputs);
void pairwise_logsumexp_grad(PairwiseProblem problem, bool allow_bfloat16_product, const GradTerms& row,
                             const GradTerms& col, const GradOutputs& outputs);
// Loss and gradient of rows among themselves (k null), or of rows against columns and columns against rows:
// packed once, and where there is room what the log-sums computed is not computed again for the gradient.
void pairwise_loss(PairwiseProblem problem, bool allow_bfloat16_product, const LossWeights& weights,
                   const LossOutputs& outputs);

// Loss and gradient of rows against columns that need no gradient, in one pass over them: exponentials are
// summed up and multiplied into the gradient while they are there. Needs unit rows and |s| <=
// kFixedShiftLimit.
void pairwise_bank(PairwiseProblem problem, bool allow_bfloat16_product, double weight,
                   const BankOutputs& outputs);

// Loss and gradient of a sigmoid for each pair of a row and a column, in one pass. Needs k; x has the bias
// added.
void pairwise_sigmoid(PairwiseProblem problem, bool allow_bfloat16_product, double bias, double weight,
                      const SigmoidOutputs& outputs);

}  // namespace fastssl
