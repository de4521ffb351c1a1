// Masked image modelling: which patches stay, their pixels, and the moves of tokens; arguments, and the table
// of kernels of one instruction set.
//
// Real is float, or double where tokens or gradients are. Indices are not trusted: one that is out of range
// gives a row of NaN and receives no gradient.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// What masks consist of.
struct MaskOutputs {
  std::int64_t *kept, *masked, *restore;  // [batch, keep], [batch, length - keep], [batch, length]
  float* mask;                            // [batch, length], 1: removed
};

// Noise is drawn from (seed, epoch, index, view) where it is null.
struct MaskProblem {
  const void* noise;  // [batch, length], `dtype`
  DType dtype;
  const std::int64_t* index;  // [batch]
  std::uint64_t seed;
  std::uint32_t epoch, view;
  std::int64_t batch, length, keep, threads;
};

void random_masks(const MaskProblem& problem, const MaskOutputs& outputs);

// Rows of `dim` numbers that lie side by side; strides in elements.
struct TokenRows {
  const void* data;  // [batch, rows, dim]
  DType dtype;
  std::int64_t batch_stride, row_stride;
};

// out [batch, prefix + ids, dim]: the prefix, then rows of x at ids, each plus its position.
struct GatherProblem {
  TokenRows x;               // [batch, length, dim]
  const std::int64_t* ids;   // [batch, kept]
  const void* positions;     // Real [length, dim], or null
  const void* prefix_rows;   // Real [prefix, dim], or null where prefix is 0
  const void* prefix_added;  // Real [prefix, dim], added to these, or null
  std::int64_t batch, length, kept, prefix, dim, threads;
};

// From the gradient of the above [batch, prefix + kept, dim]: dx [batch, length, dim], sums over images
// [prefix + length, dim], or of the prefix alone.
struct GatherGradProblem {
  TokenRows gradient;
  const std::int64_t* ids;
  std::int64_t batch, length, kept, prefix, dim, threads;
};

// out [batch, prefix + length, dim]: the prefix, then at place l token restore[l] or the mask token, plus
// positions.
struct UnshuffleProblem {
  TokenRows x;                  // [batch, prefix + kept, dim]
  const std::int64_t* restore;  // [batch, length]
  const void* mask_token;       // Real [dim]
  const void* positions;        // Real [length, dim], or null
  const void* prefix_added;     // Real [prefix, dim], or null
  std::int64_t batch, length, kept, prefix, dim, threads;
};

struct UnshuffleGradProblem {
  TokenRows gradient;  // [batch, prefix + length, dim]
  const std::int64_t* restore;
  std::int64_t batch, length, kept, prefix, dim, threads;
};

// Contiguous. Absent ones are not computed.
struct GradOfTokens {
  void* dx;  // dx_dtype
  DType dx_dtype;
  void* mask;           // Real [dim]; unshuffle only
  void* sums;           // Real; gather: at least [prefix, dim]
  bool with_positions;  // sums has rows for the patches as well
};

struct Rows {
  void* data;  // contiguous
  DType dtype;
};

// Numbers of the pixels' types: those of DType, then uint8.
constexpr int kUint8 = 4;

// out [batch, kept, channels * patch_height * patch_width]: (x - mean) / std of pixels, uint8 as x / 255.
struct PatchProblem {
  const void* images;  // [batch, channels, height, width]
  int pixel_type;
  std::int64_t image_stride, channel_stride, row_stride, pixel_stride;  // elements
  std::int64_t batch, channels, height, width, patch_height, patch_width;
  const std::int64_t* ids;   // [batch, kept]
  const double *mean, *std;  // [channels]
  std::int64_t kept, threads;
};

// By Real.
template <class Kernel>
struct ByReal {
  Kernel float32, float64;
};

struct MaskingKernels {
  ByReal<void (*)(const GatherProblem&, const Rows&)> gather;
  ByReal<void (*)(const GatherGradProblem&, const GradOfTokens&)> gather_grad;
  ByReal<void (*)(const UnshuffleProblem&, const Rows&)> unshuffle;
  ByReal<void (*)(const UnshuffleGradProblem&, const GradOfTokens&)> unshuffle_grad;
  ByReal<void (*)(const PatchProblem&, const Rows&)> patches;
};

namespace baseline {
MaskingKernels masking_kernels();
}
namespace avx2 {
MaskingKernels masking_kernels();
}
namespace avx512 {
MaskingKernels masking_kernels();
}

// Check the arguments (std::invalid_argument), pick the kernel and run it.
void gather_tokens(const GatherProblem& problem, const Rows& out);
void gather_tokens_grad(const GatherGradProblem& problem, const GradOfTokens& out);
void unshuffle_tokens(const UnshuffleProblem& problem, const Rows& out);
void unshuffle_tokens_grad(const UnshuffleGradProblem& problem, const GradOfTokens& out);
void visible_patches(const PatchProblem& problem, const Rows& out);

}  // namespace fastssl
