// The steps that change pixels by themselves, in registers one after the other over short stretches of
// pixels, and what happens to a pixel at the end of them.
#pragma once

#include "augment/noise.h"
#include "colors.h"
#include "cpu/arena.h"
#include "cpu/convert.h"

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
      stretch(begin, end, contrast_mean, pixels.at(done), first + done, here, finish, sum);
    }
  }

 private:
  static constexpr std::int64_t kStretch = 1024;  // of three channels: a third of a first-level cache
  static constexpr int kMostChanges = 8;

  void stretch(const Step* begin, const Step* end, float contrast_mean, const Pixels& pixels,
               std::int64_t first, std::int64_t count, const Finish* finish, double* sum) const {
    // Colors in registers, a few steps at a time; the last of them with what is due at the end.
    const Step* stop = begin;
    for (; stop < end; begin = stop) {
      while (stop < end && !is_positional(stop->code) && stop - begin < kMostChanges) ++stop;
      if (stop == end) break;
      color(begin, stop, contrast_mean, pixels, count, nullptr, nullptr);
      if (stop->code == kCutout)
        cutout(*stop++, pixels, first, count);
      else if (stop->code == kNoise)
        noise(*stop++, pixels, first, count);
    }
    if (finish == nullptr) return color(begin, end, contrast_mean, pixels, count, sum, nullptr);
    const Destination to = destination(*finish, pixels, first, count);
    color(begin, end, contrast_mean, pixels, count, nullptr, &to);
    if (!to.is_final) write(pixels, first, count, *finish);
  }

  // Where normalised pixels go from registers: to the output, or in place.
  struct Destination {
    float* data;
    std::int64_t plane;
    bool is_final, past_caches;
    const float *mean, *scale;
  };

  Destination destination(const Finish& finish, const Pixels& pixels, std::int64_t first,
                          std::int64_t count) const {
    auto* out = reinterpret_cast<float*>(finish.out) + first;
    const bool is_aligned =
        reinterpret_cast<std::uintptr_t>(out) % sizeof(Vec) == 0 && finish.pixels % kLanes == 0;
    if (finish.dtype != DType::kFloat32 || count % kLanes != 0 || (finish.past_caches && !is_aligned))
      return {pixels.data, pixels.plane, false, false, finish.mean, finish.inverse_std};
    return {out, finish.pixels, true, finish.past_caches, finish.mean, finish.inverse_std};
  }

  // The steps [begin, end), at most kMostChanges. sum: null, or to what the sum of gray is added. to: null
  // where the result stays in place and is not normalised.
  void color(const Step* begin, const Step* end, float mean, const Pixels& p, std::int64_t count, double* sum,
             const Destination* to) const {
    if (begin == end && sum == nullptr && to == nullptr) return;
    if (channels_ == 3) {
      typename Colors<S>::Change changes[kMostChanges];
      for (const Step* step = begin; step < end; ++step)
        changes[step - begin] = Colors<S>::change_of(*step, mean);
      const int steps = static_cast<int>(end - begin);
      if (to != nullptr) {
        normalised(changes, steps, p, count, *to);
      } else if (sum != nullptr) {
        Vec grays{};
        in_place(changes, steps, p, count, [&](const Pixel<Vec>& pixel) { grays += gray(pixel); });
        *sum += S::sum(grays);
      } else {
        in_place(changes, steps, p, count, [](const Pixel<Vec>&) {});
      }
      return;
    }
    const std::int64_t whole = count / kLanes * kLanes, rest = count - whole;
    for (int c = 0; c < channels_; ++c) {
      const float* x = p.data + c * p.plane;
      float* out = to == nullptr ? p.data + c * p.plane : to->data + c * to->plane;
      Vec values{};
      const auto change = [&](Vec value) {
        for (const Step* step = begin; step < end; ++step) apply_color(*step, mean, channels_, &value);
        values += value;
        return to == nullptr ? value : (value - to->mean[c]) * to->scale[c];
      };
      for (std::int64_t i = 0; i < whole; i += kLanes) S::store(out + i, change(S::load(x + i)));
      if (sum != nullptr && channels_ == 1) *sum += S::sum(values);
      if (rest == 0) continue;
      const Vec last = change(load_part<S>(x + whole, rest));
      store_part<S>(out + whole, last, rest);
      for (std::int64_t i = 0; sum != nullptr && channels_ == 1 && i < rest; ++i)
        *sum += static_cast<double>(out[whole + i]);
    }
  }

  // Calls store(i, pixels) with the changed pixels i, i + 1, ...
  template <class Store>
  static FASTSSL_INLINE void for_each(const typename Colors<S>::Change* changes, int steps, const Pixels& p,
                                      std::int64_t count, const Store& store) {
    const float *r = p.data, *g = r + p.plane, *b = g + p.plane;
    std::int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      const std::int64_t j = i + kLanes;
      Pixel<Vec> pixel[] = {{S::load(r + i), S::load(g + i), S::load(b + i)},
                            {S::load(r + j), S::load(g + j), S::load(b + j)}};
      for (int step = 0; step < steps; ++step) Colors<S>::template apply<2>(changes[step], pixel);
      store(i, pixel[0]);
      store(j, pixel[1]);
    }
    if (i >= count) return;
    Pixel<Vec> pixel = {S::load(r + i), S::load(g + i), S::load(b + i)};
    for (int step = 0; step < steps; ++step) Colors<S>::template apply<1>(changes[step], &pixel);
    store(i, pixel);
  }

  // also(pixels): called once for each vector; lanes behind the last pixel are zero.
  template <class Also>
  static void in_place(const typename Colors<S>::Change* changes, int steps, const Pixels& p,
                       std::int64_t count, const Also& also) {
    const std::int64_t whole = count / kLanes * kLanes, rest = count - whole;
    float *r = p.data, *g = r + p.plane, *b = g + p.plane;
    for_each(changes, steps, p, whole, [&](std::int64_t i, const Pixel<Vec>& pixel) {
      S::store(r + i, pixel.r);
      S::store(g + i, pixel.g);
      S::store(b + i, pixel.b);
      also(pixel);
    });
    if (rest == 0) return;
    alignas(kCacheLine) float part[3 * kLanes] = {};
    const Pixels last{part, kLanes};
    for (int c = 0; c < 3; ++c)
      __builtin_memcpy(part + c * kLanes, p.data + c * p.plane + whole,
                       static_cast<std::size_t>(rest) * sizeof(float));
    for_each(changes, steps, last, kLanes, [&](std::int64_t, const Pixel<Vec>& pixel) {
      store_part<S>(r + whole, pixel.r, rest);
      store_part<S>(g + whole, pixel.g, rest);
      store_part<S>(b + whole, pixel.b, rest);
      also({load_part<S>(r + whole, rest), load_part<S>(g + whole, rest), load_part<S>(b + whole, rest)});
    });
  }

  static void normalised(const typename Colors<S>::Change* changes, int steps, const Pixels& p,
                         std::int64_t count, const Destination& to) {
    const Vec mean_r = S::broadcast(to.mean[0]), scale_r = S::broadcast(to.scale[0]);
    const Vec mean_g = S::broadcast(to.mean[1]), scale_g = S::broadcast(to.scale[1]);
    const Vec mean_b = S::broadcast(to.mean[2]), scale_b = S::broadcast(to.scale[2]);
    float *r = to.data, *g = r + to.plane, *b = g + to.plane;
    const auto normal = [&](const Pixel<Vec>& pixel) {
      return Pixel<Vec>{(pixel.r - mean_r) * scale_r, (pixel.g - mean_g) * scale_g,
                        (pixel.b - mean_b) * scale_b};
    };
    if (to.past_caches) {
      for_each(changes, steps, p, count, [&](std::int64_t i, const Pixel<Vec>& pixel) {
        const Pixel<Vec> n = normal(pixel);
        S::stream(r + i, n.r);
        S::stream(g + i, n.g);
        S::stream(b + i, n.b);
      });
      return;
    }
    const std::int64_t whole = count / kLanes * kLanes, rest = count - whole;
    const auto store = [&](std::int64_t i, const Pixel<Vec>& pixel) {
      const Pixel<Vec> n = normal(pixel);
      S::store(r + i, n.r);
      S::store(g + i, n.g);
      S::store(b + i, n.b);
    };
    for_each(changes, steps, p, whole, store);
    if (rest == 0) return;
    alignas(kCacheLine) float part[3 * kLanes] = {};
    for (int c = 0; c < 3; ++c)
      __builtin_memcpy(part + c * kLanes, p.data + c * p.plane + whole,
                       static_cast<std::size_t>(rest) * sizeof(float));
    for_each(changes, steps, {part, kLanes}, kLanes, [&](std::int64_t, const Pixel<Vec>& pixel) {
      const Pixel<Vec> n = normal(pixel);
      store_part<S>(r + whole, n.r, rest);
      store_part<S>(g + whole, n.g, rest);
      store_part<S>(b + whole, n.b, rest);
    });
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

  // Normalised pixels to the output, in its dtype.
  void write(const Pixels& p, std::int64_t first, std::int64_t count, const Finish& finish) const {
    for (int c = 0; c < channels_; ++c) {
      const float* x = p.data + c * p.plane;
      char* out = finish.out + (c * finish.pixels + first) * element_bytes(finish.dtype);
      if (finish.dtype == DType::kFloat32) {
        put(x, count, reinterpret_cast<float*>(out), finish.past_caches);
        continue;
      }
      alignas(kCacheLine) std::uint16_t halves[kStretch];
      write_row(finish.dtype, x, count, halves);
      const std::int64_t words = count / 2;  // of two numbers
      if (finish.past_caches && reinterpret_cast<std::uintptr_t>(out) % sizeof(float) == 0) {
        put(reinterpret_cast<const float*>(halves), words, reinterpret_cast<float*>(out), true);
        if (count & 1) __builtin_memcpy(out + 4 * words, halves + 2 * words, 2);
      } else {
        __builtin_memcpy(out, halves, static_cast<std::size_t>(count) * sizeof halves[0]);
      }
    }
  }

  static FASTSSL_INLINE void put(const float* x, std::int64_t count, float* out, bool past_caches) {
    std::int64_t i = 0;
    if (past_caches) {
      const auto beyond =
          static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) / sizeof(float)) % kLanes;
      i = beyond == 0 ? 0 : least(kLanes - beyond, count);
      if (i > 0) store_part<S>(out, load_part<S>(x, i), i);
      for (; i + kLanes <= count; i += kLanes) S::stream(out + i, S::load(x + i));
    }
    __builtin_memcpy(out + i, x + i, static_cast<std::size_t>(count - i) * sizeof(float));
  }

  int channels_;
  std::int64_t width_, height_;
  const float* mean_;
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
