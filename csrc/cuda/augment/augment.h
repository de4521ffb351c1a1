// Augmentation on GPUs: addresses in, launches on a stream, nothing read back. No CUDA header needed here.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl::cuda {

// One stack of images, or (table not null) images of any size: a row of the device's memory for each, namely
// its address, height, width and the strides of channels, rows and pixels. Strides in bytes.
struct Images {
  const std::int64_t* table;
  const std::uint8_t* data;
  std::int64_t height, width, image_stride, channel_stride, row_stride, pixel_stride;
};

struct View {
  const float* parameters;  // device [batch, 8 + 6 steps]
  std::int64_t steps, passes;
  std::int64_t height, width;
  bool bicubic;
  void* out;  // device [batch, channels, height, width] of dtype
  DType dtype;
};

// Writes numbers of the host to the device by way of kernels' arguments: nothing has to stay alive or be
// waited for, and a graph of the stream holds them.
void write_table(const std::int64_t* numbers, std::int64_t count, std::int64_t* out, int device,
                 void* stream);

struct Problem {
  Images images;
  std::int64_t batch, channels;
  View view;
  const float *mean, *std;  // host, a number per channel
  void* workspace;          // device, of workspace_bytes
  std::int64_t workspace_bytes;
  int device;
  void* stream;  // cudaStream_t
};

// Bytes of workspace with which augment_view takes `images` images at a time.
std::int64_t workspace_bytes(const Problem& problem, std::int64_t images);

// Throws std::runtime_error with CUDA's words, std::invalid_argument where the workspace does not hold one
// image.
void augment_view(const Problem& problem);

struct Sampling {
  const std::int64_t* index;  // device [batch]
  const std::int64_t* sizes;  // device [batch, 2] or null
  std::int64_t batch, height, width, out_height, out_width;
  std::uint64_t seed;
  std::uint32_t epoch, view;
  const double* program;  // host, 12 numbers per entry
  std::int64_t entries;
  float* out;  // device [batch, 8 + 6 slots]
  int device;
  void* stream;
};

void view_parameters(const Sampling& problem);

}  // namespace fastssl::cuda
