// One view of one image. Its steps fall into stages, each of which begins with what needs the whole view: a
// quarter turn, the mean for a contrast, or a neighbourhood. A stage walks once over the view in bands of
// rows that stay in cache: rows are made (by the resampling, or from the stage before), its pointwise steps
// follow, and then the first half of a blur, the sum for a contrast, or the output.
#pragma once

#include "barriers.h"
#include "resize.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

constexpr int kQuarterTurn = 100;  // a step of this header only: the turns of the geometry, a of them

// What a thread works in.
template <class S>
struct Scratch {
  std::uint8_t* copy;
  Step* steps;
  float* inverse_std;
  float* plane[2];  // [channels][plane_stride] each
  std::int64_t plane_stride;
  Resize<S> resize;
  Blur<S> blur[2];

  Scratch(const Limits& most, Arena& arena)
      : copy(arena.take<std::uint8_t>(most.copy)),
        steps(arena.take<Step>(most.steps + 2)),
        inverse_std(arena.take<float>(most.channels)),
        plane{},
        plane_stride(spread_stride(most.pixels + S::kLanes, sizeof(float))),
        resize(most, arena),
        blur{{most.height, most.width, arena}, {most.height, most.width, arena}} {
    for (float*& each : plane) each = arena.take<float>(most.channels * plane_stride);
  }
};

template <class S>
class ViewMaker {
 public:
  ViewMaker(const AugmentProblem& p, const ViewOutput& view, bool past_caches, Scratch<S>& scratch)
      : p_(p),
        view_(view),
        past_caches_(past_caches),
        scratch_(scratch),
        channels_(static_cast<int>(p.channels)),
        height_(static_cast<int>(view.height)),
        width_(static_cast<int>(view.width)),
        steps_(channels_, view.width, view.height, p.mean) {}

  void run(std::int64_t b) {
    const std::int64_t pixels = view_.height * view_.width;
    const float* record = view_.parameters + b * (kHeader + kStep * view_.steps);
    for (int c = 0; c < channels_; ++c) scratch_.inverse_std[c] = 1.0f / p_.std[c];
    finish_ = {static_cast<char*>(view_.out) + b * p_.channels * pixels * element_bytes(p_.dtype),
               pixels,
               p_.dtype,
               p_.mean,
               scratch_.inverse_std,
               past_caches_};

    const ImageSource& image = p_.images[b];
    const Geometry g =
        geometry_of(record, static_cast<int>(image.height), static_cast<int>(image.width), height_, width_);
    const bool half = g.turns == 2;  // a half turn is two flips
    const Crop crop = crop_of(image, p_.channels, g, g.flip_y != half, scratch_.copy);
    scratch_.resize.start(crop, view_, g.flip_x != half);
    read_steps(record, g);

    const Step *begin = scratch_.steps, *barrier = next_barrier(begin);
    walk(begin, barrier, [&](std::int64_t y, std::int64_t end, const Pixels& to) {
      scratch_.resize.rows(y, end, to.data, to.plane);
    });
    while (barrier < end_) {
      const Step& step = *barrier;
      begin = step.code == kContrast ? barrier : barrier + 1;
      barrier = next_barrier(barrier + 1);
      if (step.code == kContrast) {
        mean_ = static_cast<float>(sum_ / static_cast<double>(pixels));
        in_place_ = true;
        walk(begin, barrier, [](std::int64_t, std::int64_t, const Pixels&) {});
        in_place_ = false;
      } else if (step.code == kBlur) {
        const Blur<S>& blur = scratch_.blur[blurs_ & 1];
        ++blurs_;
        walk_rows(begin, barrier, [&](const float* plane, int y, float* out) { blur.across(plane, y, out); });
      } else if (step.code == kRotate) {
        walk_rows(begin, barrier, [&](const float* plane, int y, float* out) {
          rotated_row(step, plane, height_, width_, y, out);
        });
      } else if (step.code == kSobel) {
        walk_rows(begin, barrier,
                  [&](const float* plane, int y, float* out) { sobel_row(plane, height_, width_, y, out); });
      } else {
        walk_rows(begin, barrier, [&](const float* plane, int y, float* out) {
          turned_row(static_cast<int>(step.a), plane, width_, y, out);
        });
      }
    }
  }

 private:
  static constexpr int kBand = 1024;  // pixels, but at least a row

  void read_steps(const float* record, const Geometry& g) {
    end_ = scratch_.steps;
    if (view_.bicubic) *end_++ = {kBrightness, 1, 0, 0, 0, 0};  // clamps where the cubic went beyond
    if (g.turns & 1) *end_++ = {kQuarterTurn, static_cast<float>(g.turns), 0, 0, 0, 0};
    for (std::int64_t i = 0; i < view_.steps; ++i) {
      const Step step = step_of(record, i);
      if (does_something(step)) *end_++ = step;
    }
  }

  bool does_something(const Step& step) const {
    if (step.code < kBrightness || step.code > kSobel) return false;
    if (step.code == kBlur) return blur_radius(step, height_, width_) > 0;
    if (step.code == kContrast) return channels_ == 1 || channels_ == 3;
    if (step.code == kSaturation || step.code == kHue || step.code == kGrayscale) return channels_ == 3;
    return true;
  }

  const Step* next_barrier(const Step* step) const {
    while (step < end_ && step->code != kQuarterTurn && !is_barrier(*step, height_, width_)) ++step;
    return step;
  }

  // One stage: make(y, end, pixels) writes rows [y, end); then the steps [begin, barrier) and what is due
  // before the barrier. Rows go to the other plane, unless they stay in place.
  template <class Make>
  void walk(const Step* begin, const Step* barrier, const Make& make) {
    const bool is_last = barrier == end_;
    const int code = is_last ? kNothing : barrier->code;
    const std::int64_t stride = scratch_.plane_stride, width = width_;
    const std::int64_t band = round_up(ceil_div(kBand, width), scratch_.resize.rows_at_once());
    if (!in_place_) plane_ ^= 1;
    float* plane = scratch_.plane[plane_];
    Blur<S>& blur = scratch_.blur[blurs_ & 1];
    if (code == kBlur) blur.start(*barrier, height_, width_);
    const int distinct = distinct_channels(barrier);
    sum_ = 0;
    for (std::int64_t y = 0; y < height_; y += band) {
      const std::int64_t end = y + band < height_ ? y + band : height_;
      // What nothing else reads stays where the cache has it.
      const Pixels pixels{plane + (is_last && !in_place_ ? 0 : y * width), stride};
      make(y, end, pixels);
      steps_.run(begin, barrier, mean_, pixels, y * width, (end - y) * width, is_last ? &finish_ : nullptr,
                 code == kContrast ? &sum_ : nullptr);
      for (int c = 0; code == kBlur && c < distinct; ++c) {
        for (std::int64_t r = 0; r < end - y; ++r) blur.along(pixels.data + c * stride + r * width);
      }
    }
  }

  // The same with rows that are made from the stage before by the step in front of `begin`, channel by
  // channel.
  template <class Row>
  void walk_rows(const Step* begin, const Step* barrier, const Row& row) {
    const float* from = scratch_.plane[plane_];
    const int distinct = distinct_channels(begin - 1);
    walk(begin, barrier, [&](std::int64_t y, std::int64_t end, const Pixels& to) {
      for (int c = 0; c < distinct; ++c) {
        for (std::int64_t r = y; r < end; ++r)
          row(from + c * scratch_.plane_stride, static_cast<int>(r),
              to.data + c * to.plane + (r - y) * width_);
      }
      const auto bytes = static_cast<std::size_t>((end - y) * width_) * sizeof(float);
      for (int c = distinct; c < channels_; ++c) __builtin_memcpy(to.data + c * to.plane, to.data, bytes);
    });
  }

  // How many channels differ before a step: one from a grayscale on, until something treats them differently.
  int distinct_channels(const Step* before) const {
    for (const Step* step = before; step > scratch_.steps;) {
      --step;
      if (step->code == kGrayscale) return 1;
      if (is_positional(step->code)) break;
    }
    return channels_;
  }

  const AugmentProblem& p_;
  const ViewOutput& view_;
  bool past_caches_;
  Scratch<S>& scratch_;
  int channels_, height_, width_;
  Steps<S> steps_;
  Finish finish_{};
  Step* end_ = nullptr;
  int plane_ = 0, blurs_ = 0;
  bool in_place_ = false;
  float mean_ = 0;
  double sum_ = 0;
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
