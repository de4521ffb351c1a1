// What one thread does to a few pixels: resampling, the pointwise steps, and a blur's sum that slides over
// them. N channels of a pixel travel together: three of a color, or one of any number of planes. Host and
// device.
#pragma once

#include "augment/color.h"
#include "augment/neighborhood.h"
#include "augment/noise.h"
#include "augment/taps.h"

// Steps on the pixels of a thread: together, except where the compiler then wants more registers than there
// are.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FASTSSL_EACH_PIXEL FASTSSL_HD_LOOP
#else
#define FASTSSL_EACH_PIXEL FASTSSL_HD_UNROLL
#endif

namespace fastssl {
namespace FASTSSL_ISA {

struct Image {
  const std::uint8_t* data;
  int height, width;
  std::int64_t channel_stride, row_stride, pixel_stride;  // bytes
};

template <int N>
struct Color {
  float v[N];
};

template <int N>
FASTSSL_HD float gray_of(const Color<N>& color) {
  if constexpr (N == 3) {
    return gray(Pixel<float>{color.v[0], color.v[1], color.v[2]});
  } else {
    return color.v[0];
  }
}

template <int N>
FASTSSL_HD void add_product(Color<N>* sum, float weight, const Color<N>& color) {
  FASTSSL_HD_UNROLL
  for (int c = 0; c < N; ++c) sum->v[c] += weight * color.v[c];
}

// Element k of an array that stays in registers, also in a loop that is not unrolled.
template <int N, int K>
FASTSSL_HD Color<N> one_of(const Color<N> (&colors)[K], int k) {
  Color<N> color = colors[0];
  FASTSSL_HD_UNROLL
  for (int i = 1; i < K; ++i) color = i == k ? colors[i] : color;
  return color;
}
template <int N, int K>
FASTSSL_HD void set_one_of(Color<N> (&colors)[K], int k, const Color<N>& color) {
  FASTSSL_HD_UNROLL
  for (int i = 0; i < K; ++i) colors[i] = i == k ? color : colors[i];
}

// A pixel of the resized crop, in [0, 1].
template <int N, bool bicubic>
FASTSSL_HD Color<N> resampled(const Image& image, const Geometry& g, int channel, const Taps<float>& rows,
                              const Taps<float>& columns) {
  const std::uint8_t* corner = image.data + channel * image.channel_stride +
                               (g.top + rows.first) * image.row_stride +
                               (g.left + columns.first) * image.pixel_stride;
  Color<N> sum = {};
  for (int j = 0; j < rows.count; ++j) {
    Color<N> row = {};
    const std::uint8_t* pixel = corner;
    for (int i = 0; i < columns.count; ++i) {
      const float x = (static_cast<float>(i) + columns.offset) * columns.step;
      const float weight = bicubic ? cubic(x) : triangle(x);
      FASTSSL_HD_UNROLL
      for (int c = 0; c < N; ++c) row.v[c] += weight * static_cast<float>(pixel[c * image.channel_stride]);
      pixel += image.pixel_stride;
    }
    const float y = (static_cast<float>(j) + rows.offset) * rows.step;
    add_product(&sum, bicubic ? cubic(y) : triangle(y), row);
    corner += image.row_stride;
  }
  const float scale = rows.scale * columns.scale * (1.0f / 255.0f);
  FASTSSL_HD_UNROLL
  for (int c = 0; c < N; ++c) sum.v[c] = bicubic ? clamp01(sum.v[c] * scale) : sum.v[c] * scale;
  return sum;
}

// What steps need to know about a view.
template <int N>
struct Frame {
  int height, width;
  int channels, channel;  // of the image; the first of the N
  float gray_mean;        // of the view before this launch's steps
  const float* mean;      // the normalisation's, of N channels
};

// A pointwise step on the pixels (y, x), (y + 1, x), ...
template <int N, int K>
FASTSSL_HD void apply_step(const Step& step, const Frame<N>& frame, int y, int x, Color<N> (&colors)[K]) {
  if (step.code == kCutout) {
    const Box box = cutout_box(step, frame.height, frame.width);
    FASTSSL_HD_UNROLL
    for (int k = 0; k < K; ++k) {
      if (!is_inside(box, y + k, x)) continue;
      FASTSSL_HD_UNROLL
      for (int c = 0; c < N; ++c) colors[k].v[c] = cutout_value(step, frame.mean[c]);
    }
    return;
  }
  if (step.code == kNoise) {
    const std::uint32_t key0 = key_word(step.c), key1 = key_word(step.d);
    FASTSSL_HD_LOOP  // the code of one pixel's noise is long: not K times
        for (int k = 0; k < K; ++k) {
      const std::uint32_t position = static_cast<std::uint32_t>(y + k) * frame.width + x;
      const Normals noise = normals(position, frame.channel / 4, key0, key1);
      Color<N> color = one_of(colors, k);
      FASTSSL_HD_UNROLL
      for (int c = 0; c < N; ++c) {
        const float value = color.v[c] + (step.b + step.a * of_channel(noise, frame.channel + c));
        color.v[c] = step.e != 0.0f ? clamp01(value) : value;
      }
      set_one_of(colors, k, color);
    }
    return;
  }
  FASTSSL_EACH_PIXEL
  for (int k = 0; k < K; ++k) {
    Color<N> color = one_of(colors, k);
    if constexpr (N == 3) {
      Pixel<float> p = {color.v[0], color.v[1], color.v[2]};
      apply_color(step, frame.gray_mean, &p);
      color = {{p.r, p.g, p.b}};
    } else {
      apply_color(step, frame.gray_mean, frame.channels, &color.v[0]);
    }
    set_one_of(colors, k, color);
  }
}

// Steps first, ..., last - 1 of a record, none of which reads other pixels.
template <int N, int K>
FASTSSL_HD void apply_steps(const float* record, int first, int last, const Frame<N>& frame, int y, int x,
                            Color<N> (&colors)[K]) {
  for (int i = first; i < last; ++i) {
    const Step step = step_of(record, i);
    if (step.code != kNothing) apply_step(step, frame, y, x, colors);
  }
}

// Four neighbouring sums of a blur along one axis: sums[k] = sum over j < taps of weights[j] p[(j + k)
// stride]. Reads taps + 3 pixels; weights has three zeros behind its end.
template <int N, class Packed>
FASTSSL_HD void slide(const Packed* p, int stride, const float* weights, int taps, Color<N> (&sums)[4]) {
  float w1 = 0.0f, w2 = 0.0f, w3 = 0.0f;
  FASTSSL_HD_UNROLL
  for (int k = 0; k < 4; ++k) sums[k] = {};
  for (int j = 0; j < taps + 3; ++j) {
    const float w0 = weights[j];
    const Color<N> color = p[j * stride].color();
    add_product(&sums[0], w0, color);
    add_product(&sums[1], w1, color);
    add_product(&sums[2], w2, color);
    add_product(&sums[3], w3, color);
    w3 = w2;
    w2 = w1;
    w1 = w0;
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
