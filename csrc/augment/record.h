// How the numbers of a view are laid out, and how a record is read: fastssl/ops/augment/record.py holds the
// same numbers. Whatever a record contains, what is read from it here addresses nothing outside an image.
#pragma once

#include "augment/portable.h"

namespace fastssl {
namespace FASTSSL_ISA {

constexpr int kHeader = 8;  // numbers before the steps
constexpr int kStep = 6;    // numbers per step

// What a step does.
enum Code : int {
  kNothing = 0,
  kBrightness = 1,
  kContrast = 2,
  kSaturation = 3,
  kHue = 4,
  kGrayscale = 5,
  kSolarize = 6,
  kBlur = 7,
  kRotate = 8,
  kCutout = 9,
  kNoise = 10,
  kSobel = 11,
};

struct Geometry {
  int top, left, height, width;  // of the crop, at least one pixel, inside the image
  bool flip_x, flip_y;
  int turns;  // quarter turns counter-clockwise, 0 to 3, after the flips
};

struct Step {
  int code;
  float a, b, c, d, e;
};

struct Box {
  int top, left, bottom, right;  // bottom and right are outside; empty where they are not larger
};

// The number without its fraction, as an int; 0 for NaN and infinities. The limit leaves room for sums.
FASTSSL_HD int whole_number(float x) {
  if (!(x - x == 0.0f)) return 0;
  return static_cast<int>(within(x, -1e9f, 1e9f));
}

// source_*: the image's size; height, width: the view's.
FASTSSL_HD Geometry geometry_of(const float* record, int source_height, int source_width, int height,
                                int width) {
  Geometry g;
  g.top = within(whole_number(record[0]), 0, source_height - 1);
  g.left = within(whole_number(record[1]), 0, source_width - 1);
  g.height = within(whole_number(record[2]), 1, source_height - g.top);
  g.width = within(whole_number(record[3]), 1, source_width - g.left);
  g.flip_x = record[4] - record[4] == 0.0f && record[4] != 0.0f;
  g.flip_y = record[5] - record[5] == 0.0f && record[5] != 0.0f;
  g.turns = whole_number(record[6]) & 3;
  if (height != width && (g.turns & 1)) g.turns = 0;
  return g;
}

FASTSSL_HD Step step_of(const float* record, std::int64_t i) {
  const float* s = record + kHeader + kStep * i;
  return {whole_number(s[0]), s[1], s[2], s[3], s[4], s[5]};
}

// Taps of a blur on each side of the centre; 0: it does nothing. Reflection at the border needs them below
// the view's sides.
FASTSSL_HD int blur_radius(const Step& step, int height, int width) {
  if (!(step.a > 0.0f && step.a - step.a == 0.0f)) return 0;
  const int kernel = whole_number(step.b);
  if (kernel <= 1) return 0;
  const float reach = ceil_of(step.a * 5.0f);  // beyond it lies less than 1e-6 of the weight
  const int radius = least(kernel / 2, least(height, width) - 1);
  return reach < static_cast<float>(radius) ? static_cast<int>(reach) : radius;
}

// Steps that need other pixels of the view.
FASTSSL_HD bool is_neighbourhood(const Step& step, int height, int width) {
  if (step.code == kBlur) return blur_radius(step, height, width) > 0;
  return step.code == kRotate || step.code == kSobel;
}

// Steps after which nothing can follow before the whole view is there.
FASTSSL_HD bool is_barrier(const Step& step, int height, int width) {
  return step.code == kContrast || is_neighbourhood(step, height, width);
}

FASTSSL_HD Box cutout_box(const Step& step, int height, int width) {
  const int top = whole_number(step.a), left = whole_number(step.b);
  return {within(top, 0, height), within(left, 0, width), within(top + whole_number(step.c), 0, height),
          within(left + whole_number(step.d), 0, width)};
}

FASTSSL_HD bool is_inside(const Box& box, int y, int x) {
  return y >= box.top && y < box.bottom && x >= box.left && x < box.right;
}

// What a cutout writes; mean: the normalisation's of the channel.
FASTSSL_HD float cutout_value(const Step& step, float mean) { return step.e < 0.0f ? mean : step.e; }

// Where pixel (y, x) of the finished view lies in the resized crop: the quarter turns and flips undone.
FASTSSL_HD void unturned(const Geometry& g, int height, int width, int* y, int* x) {
  int v = *y, u = *x;
  if (g.turns == 1) {  // torch.rot90: out[y, x] = in[x, width - 1 - y]
    v = *x;
    u = width - 1 - *y;
  } else if (g.turns == 2) {
    v = height - 1 - *y;
    u = width - 1 - *x;
  } else if (g.turns == 3) {
    v = height - 1 - *x;
    u = *y;
  }
  *y = g.flip_y ? height - 1 - v : v;
  *x = g.flip_x ? width - 1 - u : u;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
