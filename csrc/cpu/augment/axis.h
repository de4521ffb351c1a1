// The resampling of one axis: for each output pixel the taps and their weights, as augment/taps.h has them,
// made for a vector of outputs at a time.
#pragma once

#include "augment/taps.h"
#include "cpu/arena.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

constexpr int kBlock = 16;  // outputs whose weights lie together

struct Axis {
  int size, out, taps;  // pixels of the crop and of the view, most taps of one output
  int *first, *count;   // [out], filled up to whole blocks with the last
  float* weight;        // [blocks][taps][kBlock], zero from an output's count on

  const float* weights(std::int64_t o) const { return weight + o / kBlock * kBlock * taps + o % kBlock; }

  // The taps of outputs [begin, end) lie in [low(begin, end), high(begin, end)): they ascend, or descend.
  int low(std::int64_t begin, std::int64_t end) const { return least(first[begin], first[end - 1]); }
  int high(std::int64_t begin, std::int64_t end) const {
    return most(first[begin] + count[begin], first[end - 1] + count[end - 1]);
  }

  // flip: the output runs the other way. All weights are multiplied by scale.
  template <class S>
  void prepare(int crop, int view, bool bicubic, bool flip, float scale) {
    size = crop;
    out = view;
    if (size == out) {
      copy<S>(flip, scale);
    } else if (bicubic) {
      fill<S, true>(flip, scale);
    } else {
      fill<S, false>(flip, scale);
    }
  }

 private:
  template <class S>
  static FASTSSL_INLINE typename S::Ints outputs(std::int64_t begin, int out, bool flip) {
    const typename S::Ints o = S::lane_numbers() + static_cast<int>(begin), last = S::broadcast_ints(out - 1);
    const typename S::Ints valid = o < last ? o : last;
    return flip ? last - valid : valid;
  }

  template <class S>
  void copy(bool flip, float scale) {
    taps = 1;
    for (std::int64_t o = 0; o < round_up(out, kBlock); o += S::kLanes) {
      const typename S::Ints from = outputs<S>(o, out, flip), one = S::broadcast_ints(1);
      __builtin_memcpy(first + o, &from, sizeof from);
      __builtin_memcpy(count + o, &one, sizeof one);
      S::store(weight + o, S::broadcast(scale));
    }
  }

  // taps_of() and weight_of() of the outputs that are the lanes.
  template <class S, bool bicubic>
  void fill(bool flip, float scale) {
    using Vec = typename S::Vec;
    using Ints = typename S::Ints;
    typedef double Wide __attribute__((vector_size(sizeof(double) * S::kLanes)));
    const double stretch = static_cast<double>(size) / out, unit = stretch > 1.0 ? stretch : 1.0;
    const double support = bicubic ? 2.0 * unit : unit;
    const double reach = __builtin_ceil(2.0 * support);
    taps = reach < size ? static_cast<int>(reach) : size;
    const float step = static_cast<float>(1.0 / unit);
    for (std::int64_t o = 0; o < round_up(out, kBlock); o += S::kLanes) {
      const Wide centre = (__builtin_convertvector(outputs<S>(o, out, flip), Wide) + 0.5) * stretch;
      const Ints begin = __builtin_convertvector(centre - (support - 0.5), Ints), zero{};
      const Ints end = __builtin_convertvector(centre + (support + 0.5), Ints);
      const Ints from = begin > zero ? begin : zero, all = S::broadcast_ints(size);
      // Rounding at an edge may find one more than there can be: then the last one weighs nothing.
      const Ints found = (end < all ? end : all) - from, limit = S::broadcast_ints(taps);
      const Ints number = found < limit ? found : limit;
      __builtin_memcpy(first + o, &from, sizeof from);
      __builtin_memcpy(count + o, &number, sizeof number);
      const Vec offset = __builtin_convertvector(__builtin_convertvector(from, Wide) - centre + 0.5, Vec);
      float* weights = weight + o / kBlock * kBlock * taps + o % kBlock;
      Vec sum{};
      for (int k = 0; k < taps; ++k) {
        const Vec x = (offset + static_cast<float>(k)) * step, value = bicubic ? cubic_of(x) : triangle_of(x);
        const Vec valid = S::broadcast_ints(k) < number ? value : Vec{};
        S::store(weights + k * kBlock, valid);
        sum += valid;
      }
      const Vec factor = scale / sum;
      for (int k = 0; k < taps; ++k) S::store(weights + k * kBlock, S::load(weights + k * kBlock) * factor);
    }
  }

  // triangle() and cubic() of vectors.
  template <class Vec>
  static FASTSSL_INLINE Vec triangle_of(Vec x) {
    const Vec weight = 1.0f - (x < 0.0f ? -x : x);
    return weight > 0.0f ? weight : Vec{};
  }
  template <class Vec>
  static FASTSSL_INLINE Vec cubic_of(Vec x) {
    x = x < 0.0f ? -x : x;
    const Vec inner = (1.5f * x - 2.5f) * x * x + 1.0f, outer = ((-0.5f * x + 2.5f) * x - 4.0f) * x + 2.0f;
    return x < 1.0f ? inner : (x < 2.0f ? outer : Vec{});
  }
};

// Upper bound of the taps of one output.
inline std::int64_t most_taps(std::int64_t size, std::int64_t out, bool bicubic) {
  const std::int64_t taps = (bicubic ? 4 : 2) * ceil_div(size, out);
  return taps < size ? taps : size;
}

// Numbers that an axis has for its weights.
inline std::int64_t axis_weights(std::int64_t size, std::int64_t out, bool bicubic) {
  return round_up(out, kBlock) * most_taps(size, out, bicubic);
}

// Memory for an axis of up to `out` outputs and `weights` weights.
inline Axis take_axis(std::int64_t out, std::int64_t weights, Arena& arena) {
  Axis axis{};
  axis.first = arena.take<int>(round_up(out, kBlock));
  axis.count = arena.take<int>(round_up(out, kBlock));
  axis.weight = arena.take<float>(weights);
  return axis;
}

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
