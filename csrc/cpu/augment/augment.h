// Random views: arguments, and the kernel of one instruction set. A view of an image is one resampling of a
// crop with flips and quarter turns, a list of steps, and the normalisation (x - mean) / std;
// csrc/augment/record.h says how a record holds them.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// Strides in bytes, not negative.
struct ImageSource {
  const std::uint8_t* data;
  std::int64_t height, width, channel_stride, row_stride, pixel_stride;
};

struct ViewOutput {
  const float* parameters;  // [batch, 8 + 6 steps]
  std::int64_t steps, height, width;
  bool bicubic;
  void* out;  // [batch, channels, height, width], `dtype`
};

struct AugmentProblem {
  const ImageSource* images;  // [batch]
  std::int64_t batch, channels;
  const ViewOutput* views;  // [view_count]
  std::int64_t view_count;
  const float *mean, *std;  // [channels]
  DType dtype;
  std::int64_t threads;
};

struct SampleProblem {
  const std::int64_t* index;  // [batch]
  const std::int64_t* sizes;  // [batch, 2]: height and width of each image, or null: all are height x width
  std::int64_t batch, height, width, out_height, out_width;
  std::uint64_t seed;
  std::uint32_t epoch, view;
  const double* program;  // [entries, 12]
  std::int64_t entries;
  float* out;  // [batch, 8 + 6 steps of the program]
  std::int64_t threads;
};

using AugmentKernel = void (*)(const AugmentProblem&);

namespace baseline {
AugmentKernel augment_kernel();
}
namespace avx2 {
AugmentKernel augment_kernel();
}
namespace avx512 {
AugmentKernel augment_kernel();
}

// Check the arguments (std::invalid_argument), pick the kernel and run it.
void augment_views(const AugmentProblem& problem);
void view_parameters(const SampleProblem& problem);

}  // namespace fastssl
