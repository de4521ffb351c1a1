// The color steps of augment/color.h on vectors of pixels, with the instructions for least and most that
// compilers do not find behind comparisons, and hue without its cases.
#pragma once

#include "augment/color.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

template <class S>
struct Colors {
  using Vec = typename S::Vec;
  using Rgb = Pixel<Vec>;

  // The lesser and the larger; a where one is NaN.
  static FASTSSL_INLINE Vec lesser(Vec a, Vec b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(
        _mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
#elif defined(__AVX2__)
    return reinterpret_cast<Vec>(_mm256_min_ps(reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(a)));
#elif defined(__SSE2__)
    return reinterpret_cast<Vec>(_mm_min_ps(reinterpret_cast<__m128>(b), reinterpret_cast<__m128>(a)));
#else
    return b < a ? b : a;
#endif
  }
  static FASTSSL_INLINE Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vec>(
        _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a)));
#elif defined(__AVX2__)
    return reinterpret_cast<Vec>(_mm256_max_ps(reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(a)));
#elif defined(__SSE2__)
    return reinterpret_cast<Vec>(_mm_max_ps(reinterpret_cast<__m128>(b), reinterpret_cast<__m128>(a)));
#else
    return a < b ? b : a;
#endif
  }

  static FASTSSL_INLINE Vec absolute(Vec x) {
    using Bits = typename S::Bits;
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) & 0x7fffffffu);
  }

  // To [0, 1]; NaN stays NaN.
  static FASTSSL_INLINE Vec clamp(Vec x) { return larger(lesser(x, S::broadcast(1.0f)), Vec{}); }

  // x factor + other.
  static FASTSSL_INLINE void blend(Rgb* p, float factor, Vec other) {
    const Vec f = S::broadcast(factor);
    *p = {clamp(f * p->r + other), clamp(f * p->g + other), clamp(f * p->b + other)};
  }

  // Hue in sixths of a turn is an offset by the largest channel plus a difference over the chroma; where the
  // chroma is zero it does not matter. A channel is the value, lowered by the chroma where its color is more
  // than a sixth of a turn away: ramps of the distance on the circle.
  // ahead: what the hue is turned by, plus whole turns, in sixths in [1, 7).
  static FASTSSL_INLINE void hue(Rgb* p, float ahead) {
    constexpr float kTiny = 1e-30f;
    const Vec value = larger(larger(p->r, p->g), p->b), chroma = value - lesser(lesser(p->r, p->g), p->b);
    const Vec inverse = 1.0f / larger(chroma, S::broadcast(kTiny));
    const Vec from_r = (p->g - p->b) * inverse, from_g = (p->b - p->r) * inverse + 2.0f;
    const Vec from_b = (p->r - p->g) * inverse + 4.0f;
    const Vec turned = (value == p->r ? from_r : (value == p->g ? from_g : from_b)) + ahead;  // in [0, 12)
    const Vec sixths = turned >= 6.0f ? turned - 6.0f : turned;
    *p = {value - chroma * clamp(2.0f - absolute(sixths - 3.0f)),
          value - chroma * clamp(absolute(sixths - 2.0f) - 1.0f),
          value - chroma * clamp(absolute(sixths - 4.0f) - 1.0f)};
  }

  // A step with what can be known before the first pixel.
  struct Change {
    int code;
    float a, b;
  };

  // mean: of gray over the view, for a contrast.
  static Change change_of(const Step& step, float mean) {
    if (step.code == kBrightness) return {kContrast, step.a, 0.0f};
    if (step.code == kContrast) return {kContrast, step.a, (1.0f - step.a) * mean};
    if (step.code == kSaturation) return {kSaturation, step.a, 1.0f - step.a};
    if (step.code != kHue) return {step.code, step.a, 0.0f};
    const float ahead = 6.0f * (step.a - floor_of(step.a));
    return {kHue, ahead < 1.0f ? ahead + 6.0f : ahead, 0.0f};
  }

  // To several vectors of pixels, whose latencies hide each other.
  template <int kCount>
  static FASTSSL_INLINE void apply(const Change& change, Rgb* p) {
    switch (change.code) {
      case kContrast:
        return each<kCount>(p, [&](Rgb* x) { blend(x, change.a, S::broadcast(change.b)); });
      case kSaturation:
        return each<kCount>(p, [&](Rgb* x) { blend(x, change.a, change.b * gray(*x)); });
      case kHue:
        return each<kCount>(p, [&](Rgb* x) { hue(x, change.a); });
      case kGrayscale:
        return each<kCount>(p, [&](Rgb* x) { x->r = x->g = x->b = gray(*x); });
      default:
        return each<kCount>(p, [&](Rgb* x) {
          *x = {solarize(x->r, change.a), solarize(x->g, change.a), solarize(x->b, change.a)};
        });
    }
  }

 private:
  template <int kCount, class Body>
  static FASTSSL_INLINE void each(Rgb* p, const Body& body) {
    FASTSSL_UNROLL
    for (int i = 0; i < kCount; ++i) body(p + i);
  }
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
