// A crop resampled to the size of a view, a few rows at a time and in order. Where the view is taller than
// the crop each source row is first resampled horizontally, into a ring of the rows that vertical taps still
// need; where it is smaller, source rows are added up first.
#pragma once

#include "horizontal.h"
#include "picks.h"
#include "segments.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

// The most that any view of any image of a problem needs.
struct Limits {
  std::int64_t channels, source_width = 0, source_height = 0, copy = 0;
  std::int64_t height = 0, width = 0, pixels = 0, taps_x = 0, taps_y = 0, window = 0, steps = 0;

  template <class Strips>
  static Limits of(const AugmentProblem& p) {
    Limits most{p.channels};
    const auto raise = [](std::int64_t* limit, std::int64_t value) {
      *limit = value > *limit ? value : *limit;
    };
    for (std::int64_t b = 0; b < p.batch; ++b) {
      raise(&most.source_height, p.images[b].height);
      raise(&most.source_width, p.images[b].width);
      raise(&most.copy, copied_bytes(p.images[b], p.channels));
    }
    for (std::int64_t v = 0; v < p.view_count; ++v) {
      const ViewOutput& view = p.views[v];
      raise(&most.height, view.height);
      raise(&most.width, view.width);
      raise(&most.pixels, view.height * view.width);
      raise(&most.taps_x, axis_weights(most.source_width, view.width, view.bicubic));
      raise(&most.taps_y, axis_weights(most.source_height, view.height, view.bicubic));
      raise(&most.window, Strips::most_window(most.source_width, view.width, view.bicubic));
      raise(&most.steps, view.steps);
    }
    return most;
  }
};

template <class S>
class Resize {
 public:
  using Vec = typename S::Vec;
  static constexpr int kLanes = S::kLanes;

  Resize(const Limits& most, Arena& arena)
      : x_(take_axis(most.width, most.taps_x, arena)),
        y_(take_axis(most.height, most.taps_y, arena)),
        strips_(most.window, most.channels, arena),
        picks_(most.source_width, most.width, most.channels, arena),
        segments_(most.source_width, most.channels, arena),
        ring_stride_(spread_stride(most.width + kLanes, sizeof(float))),
        ring_(arena.take<float>(kRing * most.channels * ring_stride_)),
        sum_stride_(spread_stride(most.channels * most.source_width + kLanes, sizeof(float))),
        sums_(arena.take<float>(kLanes * sum_stride_)) {}

  void start(const Crop& crop, const ViewOutput& view, bool flip_x) {
    crop_ = crop;
    out_width_ = view.width;
    x_.template prepare<S>(crop.width, static_cast<int>(view.width), view.bicubic, flip_x, 1.0f);
    y_.template prepare<S>(crop.height, static_cast<int>(view.height), view.bicubic, false, 1.0f / 255.0f);
    rows_first_ = crop.height <= view.height;
    by_picks_ = picks_.start(crop, x_);
    by_segments_ = !rows_first_ && segments_.start(crop, y_, view.bicubic);
    done_ = 0;
  }

  // Rows are best asked for in multiples of this.
  int rows_at_once() const { return rows_first_ || by_picks_ ? 1 : kLanes; }

  // Rows [begin, end) of the view, begin where the last call ended: row y of channel c at
  // out + c * plane + (y - begin) * width. Up to a vector behind the last row may be overwritten.
  void rows(std::int64_t begin, std::int64_t end, float* out, std::int64_t plane) {
    if (rows_first_) {
      for (std::int64_t y = begin; y < end; ++y) combine(y, out + (y - begin) * out_width_, plane);
    } else {
      for (std::int64_t y = begin; y < end; y += kLanes) {
        const std::int64_t stop = y + kLanes < end ? y + kLanes : end;
        shrink(y, stop, out + (y - begin) * out_width_, plane);
      }
    }
  }

 private:
  static constexpr int kRing = 32;  // at least the lanes and the taps of a row, four where rows come first

  float* ring_row(std::int64_t y) const { return ring_ + (y & (kRing - 1)) * crop_.channels * ring_stride_; }

  // The next rows of the source into the ring.
  void produce() {
    if (by_picks_) {
      picks_.run(crop_, crop_.row(done_), crop_.run_stride, ring_row(done_), ring_stride_);
      ++done_;
      return;
    }
    const std::uint8_t* from[kLanes];
    RowGroup<S> to{};
    to.plane = ring_stride_;
    for (int r = 0; r < kLanes; ++r) {
      const bool exists = done_ + r < crop_.height;
      from[r] = crop_.row(exists ? done_ + r : crop_.height - 1);
      to.rows[r] = ring_row(done_ + r);
      to.count += exists;
    }
    strips_.run(crop_, x_, from, crop_.run_stride, to);
    done_ += to.count;
  }

  void combine(std::int64_t y, float* out, std::int64_t plane) {
    const std::int64_t first = y_.first[y];
    const int count = y_.count[y];
    while (done_ < first + count) produce();
    switch (count) {
      case 1:
        return add_ring_rows<1>(y, out, plane);
      case 2:
        return add_ring_rows<2>(y, out, plane);
      case 3:
        return add_ring_rows<3>(y, out, plane);
      default:
        return add_ring_rows<4>(y, out, plane);
    }
  }

  template <int kTaps>
  void add_ring_rows(std::int64_t y, float* out, std::int64_t plane) const {
    const float *weights = y_.weights(y), *from[kTaps];
    Vec weight[kTaps];
    for (int k = 0; k < kTaps; ++k) {
      from[k] = ring_row(y_.first[y] + k);
      weight[k] = S::broadcast(weights[k * kBlock]);
    }
    for (int c = 0; c < crop_.channels; ++c) {
      for (std::int64_t x = 0; x < out_width_; x += kLanes) {
        Vec sum = weight[0] * S::load(from[0] + c * ring_stride_ + x);
        for (int k = 1; k < kTaps; ++k) sum += weight[k] * S::load(from[k] + c * ring_stride_ + x);
        S::store(out + c * plane + x, sum);
      }
    }
  }

  void shrink(std::int64_t begin, std::int64_t end, float* out, std::int64_t plane) {
    const std::int64_t length = crop_.run_length();
    const float* from[kLanes];
    RowGroup<S> to{};
    to.plane = plane;
    for (int r = 0; r < kLanes; ++r) {
      const std::int64_t y = begin + r < end ? begin + r : end - 1;
      float* sums = sums_ + (y - begin) * sum_stride_;
      from[r] = sums;
      to.rows[r] = out + (y - begin) * out_width_;
      if (y - begin < r) continue;
      ++to.count;
      if (by_segments_) segments_.row(static_cast<int>(y), sums);
      for (int run = 0; run < crop_.runs() && !by_segments_; ++run)
        add_rows(crop_.row(y_.first[y]) + run * crop_.run_stride, y, length, sums + run * length);
      if (by_picks_) picks_.run(crop_, sums, length, to.rows[r], plane);
    }
    if (by_picks_) return;
    strips_.run(crop_, x_, from, length, to);
  }

  // The weighted sum of the source rows of output row y, of one run.
  void add_rows(const std::uint8_t* from, std::int64_t y, std::int64_t length, float* out) const {
    const float* weights = y_.weights(y);
    const int count = y_.count[y];
    if (length < kLanes) {
      for (std::int64_t i = 0; i < length; ++i) {
        float sum = 0;
        for (int k = 0; k < count; ++k)
          sum += weights[k * kBlock] * static_cast<float>(from[k * crop_.row_stride + i]);
        out[i] = sum;
      }
      return;
    }
    for_covering<S>(length, [&](std::int64_t i) {
      Vec sum{};
      for (int k = 0; k < count; ++k) sum += weights[k * kBlock] * load<S>(from + k * crop_.row_stride + i);
      S::store(out + i, sum);
    });
  }

  Axis x_, y_;
  Strips<S> strips_;
  Picks picks_;
  Segments<S> segments_;
  std::int64_t ring_stride_;
  float* ring_;  // [kRing][channels][ring_stride]
  std::int64_t sum_stride_;
  float* sums_;  // [kLanes][sum_stride]: rows of the source added up, in its layout
  Crop crop_{};
  std::int64_t out_width_ = 0;
  bool rows_first_ = false, by_picks_ = false, by_segments_ = false;
  std::int64_t done_ = 0;  // rows of the source that are resampled
};

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
