// The steps that change pixels by themselves, in registers one after the other over short stretches of pixels, and
// what happens to a pixel at the end of them.
#pragma once

#include "augment/color.h"
#include "augment/noise.h"
#include "cpu/arena.h"
#include "cpu/convert.h"
#include "vectors.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

// Pixels of all channels: channel c at data + c * plane.
struct Pixels {
  float* data;
  std::int64_t plane;

  Pixels at(std::int64_t i) const { return {data + i, plane}; }
};

// Where a finished view goes, and its normalisation.
struct Finish {
  char* out;  // [channels][pixels]
  std::int64_t pixels;
  DType dtype;
  const float *mean, *inverse_std;
  bool past_caches;
};

constexpr bool is_positional(int code) { return code == kCutout || code == kNoise; }

template <class S>
class Steps {
 public:
  using Vec = typename S::Vec;
  static constexpr int kLanes = S::kLanes;

  Steps(int channels, std::int64_t width, std::int64_t height, const float* mean)
      : channels_(channels), width_(width), height_(height), mean_(mean) {}

  // Runs the steps [begin, end) over pixels [first, first + count) of the view, which are at `pixels`.
  // contrast_mean: of gray over the view, for a contrast among them. finish: null, or to where the normalised
  // pixels are written; without it the result stays in place. sum: null, or to what the sum of gray is added.
  void run(const Step* begin, const Step* end, float contrast_mean, const Pixels& pixels, std::int64_t first,
           std::int64_t count, const Finish* finish, double* sum) const {
    for (std::int64_t done = 0; done < count; done += kStretch) {
      const std::int64_t here = count - done < kStretch ? count - done : kStretch;
      stretch(begin, end, contrast_mean, pixels.at(done), first + done, here);
      if (sum != nullptr) *sum += gray_sum(pixels.at(done), here);
      if (finish != nullptr) write(pixels.at(done), first + done, here, *finish);
    }
  }

 private:
  static constexpr std::int64_t kStretch = 1024;  // of three channels: a third of a first-level cache

  void stretch(const Step* begin, const Step* end, float contrast_mean, const Pixels& pixels, std::int64_t first,
               std::int64_t count) const {
    while (begin < end) {
      const Step* stop = begin;
      while (stop < end && !is_positional(stop->code)) ++stop;
      if (stop > begin) color(begin, stop, contrast_mean, pixels, count);
      if (stop == end) return;
      if (stop->code == kCutout) {
        cutout(*stop, pixels, first, count);
      } else {
        noise(*stop, pixels, first, count);
      }
      begin = stop + 1;
    }
  }

  void color(const Step* begin, const Step* end, float mean, const Pixels& p, std::int64_t count) const {
    const std::int64_t whole = count / kLanes * kLanes;
    if (channels_ == 3) {
      float *r = p.data, *g = r + p.plane, *b = g + p.plane;
      const auto change = [&](Pixel<Vec> pixel) {
        for (const Step* step = begin; step < end; ++step) apply_color(*step, mean, &pixel);
        return pixel;
      };
      for (std::int64_t i = 0; i < whole; i += kLanes) {
        const Pixel<Vec> pixel = change({S::load(r + i), S::load(g + i), S::load(b + i)});
        S::store(r + i, pixel.r);
        S::store(g + i, pixel.g);
        S::store(b + i, pixel.b);
      }
      if (const std::int64_t rest = count - whole; rest > 0) {
        const Pixel<Vec> pixel = change({load_part<S>(r + whole, rest), load_part<S>(g + whole, rest),
                                         load_part<S>(b + whole, rest)});
        store_part<S>(r + whole, pixel.r, rest);
        store_part<S>(g + whole, pixel.g, rest);
        store_part<S>(b + whole, pixel.b, rest);
      }
      return;
    }
    for (int c = 0; c < channels_; ++c) {
      float* x = p.data + c * p.plane;
      const auto change = [&](Vec value) {
        for (const Step* step = begin; step < end; ++step) apply_color(*step, mean, channels_, &value);
        return value;
      };
      for (std::int64_t i = 0; i < whole; i += kLanes) S::store(x + i, change(S::load(x + i)));
      if (const std::int64_t rest = count - whole; rest > 0)
        store_part<S>(x + whole, change(load_part<S>(x + whole, rest)), rest);
    }
  }

  // In the box the value of the step, or the channel's mean.
  void cutout(const Step& step, const Pixels& p, std::int64_t first, std::int64_t count) const {
    const Box box = cutout_box(step, static_cast<int>(height_), static_cast<int>(width_));
    for (std::int64_t y = first / width_; y * width_ < first + count; ++y) {
      if (y < box.top || y >= box.bottom) continue;
      const std::int64_t begin = most(y * width_ + box.left, first) - first;
      const std::int64_t end = least(y * width_ + box.right, first + count) - first;
      for (int c = 0; c < channels_; ++c) {
        const float value = cutout_value(step, mean_[c]);
        for (std::int64_t i = begin; i < end; ++i) p.data[c * p.plane + i] = value;
      }
    }
  }

  void noise(const Step& step, const Pixels& p, std::int64_t first, std::int64_t count) const {
    const std::uint32_t key0 = key_word(step.c), key1 = key_word(step.d);
    for (int group = 0; 4 * group < channels_; ++group) {
      const int channels = channels_ - 4 * group < 4 ? channels_ - 4 * group : 4;
      for (std::int64_t i = 0; i < count; ++i) {
        const Normals n = normals(static_cast<std::uint32_t>(first + i), group, key0, key1);
        for (int c = 0; c < channels; ++c) {
          float* x = p.data + (4 * group + c) * p.plane + i;
          *x += step.b + step.a * of_channel(n, c);
        }
      }
      for (int c = 0; c < channels && step.e != 0; ++c) {
        float* x = p.data + (4 * group + c) * p.plane;
        for (std::int64_t i = 0; i < count; ++i) x[i] = clamp01(x[i]);
      }
    }
  }

  double gray_sum(const Pixels& p, std::int64_t count) const {
    if (channels_ != 1 && channels_ != 3) return 0;
    const std::int64_t whole = count / kLanes * kLanes, rest = count - whole;
    Vec sum{};
    const auto value = [&](std::int64_t i) {
      if (channels_ == 1) return S::load(p.data + i);
      return gray(Pixel<Vec>{S::load(p.data + i), S::load(p.data + p.plane + i), S::load(p.data + 2 * p.plane + i)});
    };
    for (std::int64_t i = 0; i < whole; i += kLanes) sum += value(i);
    if (rest > 0) {
      const float* last = p.data + whole;
      sum += channels_ == 1 ? load_part<S>(last, rest)
                            : gray(Pixel<Vec>{load_part<S>(last, rest), load_part<S>(last + p.plane, rest),
                                              load_part<S>(last + 2 * p.plane, rest)});
    }
    return S::sum(sum);
  }

  void write(const Pixels& p, std::int64_t first, std::int64_t count, const Finish& finish) const {
    for (int c = 0; c < channels_; ++c) {
      float* x = p.data + c * p.plane;
      const float mean = finish.mean[c], scale = finish.inverse_std[c];
      char* out = finish.out + (c * finish.pixels + first) * element_bytes(finish.dtype);
      if (finish.dtype == DType::kFloat32) {
        put(x, count, reinterpret_cast<float*>(out), finish.past_caches,
            [=](Vec v) { return (v - mean) * scale; });
        continue;
      }
      alignas(kCacheLine) std::uint16_t halves[kStretch];
      for (std::int64_t i = 0; i < count; ++i) x[i] = (x[i] - mean) * scale;
      write_row(finish.dtype, x, count, halves);
      const std::int64_t words = count / 2;  // of two numbers
      if (finish.past_caches && reinterpret_cast<std::uintptr_t>(out) % sizeof(float) == 0) {
        put(reinterpret_cast<const float*>(halves), words, reinterpret_cast<float*>(out), true,
            [](Vec v) { return v; });
        if (count & 1) __builtin_memcpy(out + 4 * words, halves + 2 * words, 2);
      } else {
        __builtin_memcpy(out, halves, static_cast<std::size_t>(count) * sizeof halves[0]);
      }
    }
  }

  // out[i] = change(x[i]).
  template <class Change>
  static FASTSSL_INLINE void put(const float* x, std::int64_t count, float* out, bool past_caches,
                                 const Change& change) {
    std::int64_t i = 0;
    if (past_caches) {
      const auto beyond = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) / sizeof(float)) % kLanes;
      i = beyond == 0 ? 0 : least(kLanes - beyond, count);
      if (i > 0) store_part<S>(out, change(load_part<S>(x, i)), i);
      for (; i + kLanes <= count; i += kLanes) S::stream(out + i, change(S::load(x + i)));
    } else {
      for (; i + kLanes <= count; i += kLanes) S::store(out + i, change(S::load(x + i)));
    }
    if (i < count) store_part<S>(out + i, change(load_part<S>(x + i, count - i)), count - i);
  }

  int channels_;
  std::int64_t width_, height_;
  const float* mean_;
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
