// The steps that change a pixel by itself, after torchvision.transforms.v2.functional on float images in [0,
// 1]. T: float, or a vector type of the compiler (csrc/cpu/simd.h), for which a comparison gives a mask and
// ?: selects.
#pragma once

#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {

template <class T>
FASTSSL_HD T splat(float x) {
  return x - T{};
}

// Also of vectors. Exact below 2^22, which is far more turns than a hue has.
template <class T>
FASTSSL_HD T floor_small(T x) {
  const T magic = splat<T>(12582912.0f), nearest = (x + magic) - magic;
  return nearest > x ? nearest - splat<T>(1.0f) : nearest;
}

// NaN stays NaN.
template <class T>
FASTSSL_HD T clamp01(T x) {
  const T zero = splat<T>(0.0f), one = splat<T>(1.0f);
  const T below = x > one ? one : x;
  return below < zero ? zero : below;
}

template <class T>
struct Pixel {
  T r, g, b;
};

template <class T>
FASTSSL_HD T gray(const Pixel<T>& p) {
  return splat<T>(0.2989f) * p.r + splat<T>(0.587f) * p.g + splat<T>(0.114f) * p.b;
}

template <class T>
FASTSSL_HD T brightness(T x, float factor) {
  return clamp01(x * splat<T>(factor));
}

// clamp(factor x + (1 - factor) other): contrast, with the mean of the view's gray, and saturation, with the
// pixel's.
template <class T>
FASTSSL_HD T blend(T x, T other, float factor) {
  return clamp01(splat<T>(factor) * x + splat<T>(1.0f - factor) * other);
}

template <class T>
FASTSSL_HD T solarize(T x, float threshold) {
  return x >= splat<T>(threshold) ? splat<T>(1.0f) - x : x;
}

// One channel of a color with the largest component `value`, chroma and hue (in sixths of a turn, below 6): 5
// for red, 3 for green, 1 for blue. Equal to the usual six cases, without them.
template <class T>
FASTSSL_HD T hsv_channel(float which, T sixths, T value, T chroma) {
  const T zero = splat<T>(0.0f), one = splat<T>(1.0f), six = splat<T>(6.0f);
  const T turned = sixths + splat<T>(which), k = turned >= six ? turned - six : turned;
  const T falling = splat<T>(4.0f) - k, ramp = k < falling ? k : falling;
  const T share = ramp > one ? one : ramp;
  return value - chroma * (share > zero ? share : zero);
}

// shift: in turns.
template <class T>
FASTSSL_HD Pixel<T> hue(const Pixel<T>& p, float shift) {
  const T zero = splat<T>(0.0f), one = splat<T>(1.0f);
  const T high = p.r > p.g ? p.r : p.g, value = high > p.b ? high : p.b;
  const T low = p.r < p.g ? p.r : p.g, chroma = value - (low < p.b ? low : p.b);
  const T inverse = one / (chroma > zero ? chroma : one);
  const T from_g = splat<T>(2.0f) + (p.b - p.r) * inverse, from_b = splat<T>(4.0f) + (p.r - p.g) * inverse;
  const T others = value == p.g ? from_g : from_b;
  const T before = chroma > zero ? (value == p.r ? (p.g - p.b) * inverse : others) : zero;
  const T six = splat<T>(6.0f), turned = before + splat<T>(6.0f * shift);
  const T cut = turned - six * floor_small(turned * splat<T>(1.0f / 6.0f));
  const T sixths = cut >= six ? cut - six : cut;  // the product with 1/6 is rounded
  return {hsv_channel(5.0f, sixths, value, chroma), hsv_channel(3.0f, sixths, value, chroma),
          hsv_channel(1.0f, sixths, value, chroma)};
}

// A step on a pixel of three channels: brightness, contrast, saturation, hue, grayscale, solarize; others do
// nothing. mean: of gray over the view, read by contrast.
template <class T>
FASTSSL_HD void apply_color(const Step& step, float mean, Pixel<T>* p) {
  switch (step.code) {
    case kBrightness:
      *p = {brightness(p->r, step.a), brightness(p->g, step.a), brightness(p->b, step.a)};
      return;
    case kContrast:
    case kSaturation: {
      const T other = step.code == kContrast ? splat<T>(mean) : gray(*p);
      *p = {blend(p->r, other, step.a), blend(p->g, other, step.a), blend(p->b, other, step.a)};
      return;
    }
    case kHue:
      *p = hue(*p, step.a);
      return;
    case kGrayscale: {
      const T value = gray(*p);
      *p = {value, value, value};
      return;
    }
    case kSolarize:
      *p = {solarize(p->r, step.a), solarize(p->g, step.a), solarize(p->b, step.a)};
      return;
    default:
      return;
  }
}

// A step on a value of an image of `channels` other than three: what mixes channels does nothing, except that
// contrast has a meaning for one channel.
template <class T>
FASTSSL_HD void apply_color(const Step& step, float mean, int channels, T* x) {
  if (step.code == kBrightness) *x = brightness(*x, step.a);
  if (step.code == kContrast && channels == 1) *x = blend(*x, splat<T>(mean), step.a);
  if (step.code == kSolarize) *x = solarize(*x, step.a);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
