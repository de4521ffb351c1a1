// The error of predicted patches against the pixels of an image, and its gradient: arguments, and the table
// of kernels of one instruction set.
//
// For a patch with pixels x of n = patch_size^2 channels numbers, and its predicted row r:
//   t = scale_c x + shift_c,  with `normalize` less its mean, over the root of its unbiased variance + 1e-6,
//   loss = w / n sum_k e(r_k - t_k),  gradient_k = f / n e'(r_k - t_k).
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// The numbers of DType, and one more.
enum class PixelType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3, kUint8 = 4 };

// Numbers shared with fastssl/ops/reconstruction/op.py.
enum class PatchError : int { kSquared = 0, kAbsolute = 1, kSmooth = 2 };

constexpr std::int64_t kMostChannels = 4;

// Real is float, or double where the predictions are. Strides are in elements.
struct PatchLossProblem {
  const void* image;  // [batch, channels, height, width]
  PixelType pixel_type;
  std::int64_t batch, channels, height, width;
  std::int64_t image_stride, channel_stride, row_stride, pixel_stride;
  double scale[kMostChannels], shift[kMostChannels];
  const void* prediction;  // [batch, tokens + patches, n], the numbers of a row side by side
  DType dtype;
  std::int64_t prediction_stride, patch_stride;  // from image to image, and from row to row
  std::int64_t tokens;                           // rows before the patches, which are left out
  const void* weight;                            // w, Real [batch, patches]; patches of weight 0 are not read
  std::int64_t patch_size;
  bool normalize, channels_first;  // a row's order: (channel, y, x), else (y, x, channel)
  PatchError error;
  double beta;  // of kSmooth
  std::int64_t threads;
};

struct PatchLossOutputs {
  void* loss;          // Real [batch, patches], or null
  void* gradient;      // `dtype` [batch, tokens + patches, n] without gaps, or null; zeros in rows left out
  const void* factor;  // f, Real [batch, patches], with `gradient`
};

using PatchLossKernel = void (*)(const PatchLossProblem&, const PatchLossOutputs&);

struct PatchLossKernels {
  PatchLossKernel float32, float64;  // by Real
};

namespace baseline {
PatchLossKernels patch_loss_kernels();
}
namespace avx2 {
PatchLossKernels patch_loss_kernels();
}
namespace avx512 {
PatchLossKernels patch_loss_kernels();
}

// Checks the arguments (std::invalid_argument), picks the kernel and runs it.
void patch_loss(const PatchLossProblem& problem, const PatchLossOutputs& outputs);

}  // namespace fastssl
