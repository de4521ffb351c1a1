// The pixels that a view is made of.
#pragma once

#include "augment.h"
#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

// A crop whose rows are runs of bytes: one of all channels where they are interleaved, else one per channel.
struct Crop {
  const std::uint8_t* data;
  std::int64_t row_stride, run_stride;  // bytes; a row stride may be negative
  int height, width, channels;
  bool interleaved;

  int runs() const { return interleaved ? 1 : channels; }
  std::int64_t run_length() const { return interleaved ? std::int64_t{width} * channels : width; }
  const std::uint8_t* row(std::int64_t y) const { return data + y * row_stride; }
};

inline bool is_planar(const ImageSource& image) { return image.pixel_stride == 1 || image.width == 1; }

inline bool is_interleaved(const ImageSource& image, std::int64_t channels) {
  return image.channel_stride == 1 && image.pixel_stride == channels && channels > 1;
}

// Bytes that crop_of() needs to copy an image of other strides.
inline std::int64_t copied_bytes(const ImageSource& image, std::int64_t channels) {
  return is_planar(image) || is_interleaved(image, channels) ? 0 : channels * image.height * image.width;
}

// The crop of a geometry. A vertical flip is a walk from the last row to the first.
inline Crop crop_of(const ImageSource& image, std::int64_t channels, const Geometry& g, bool flip_y,
                    std::uint8_t* copy) {
  Crop crop{image.data + g.top * image.row_stride + g.left * image.pixel_stride,
            image.row_stride,
            image.channel_stride,
            g.height,
            g.width,
            static_cast<int>(channels),
            is_interleaved(image, channels)};
  if (!crop.interleaved && !is_planar(image)) {
    std::uint8_t* out = copy;
    for (std::int64_t c = 0; c < channels; ++c) {
      for (std::int64_t y = 0; y < g.height; ++y) {
        const std::uint8_t* from = crop.row(y) + c * image.channel_stride;
        for (std::int64_t x = 0; x < g.width; ++x) *out++ = from[x * image.pixel_stride];
      }
    }
    crop.data = copy;
    crop.row_stride = g.width;
    crop.run_stride = std::int64_t{g.height} * g.width;
  }
  if (flip_y) {
    crop.data = crop.row(crop.height - 1);
    crop.row_stride = -crop.row_stride;
  }
  return crop;
}

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
