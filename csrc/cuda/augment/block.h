// What one thread block does, as functions of a thread's number between barriers:
// tests/cpp/augment_device.cpp runs the threads of a block one after the other. A block makes a tile of one
// view; each thread makes four pixels below one another in two columns of it.
//
// Memory says how pixels are kept between launches and in shared memory, and how results are written:
//   Packed<N>                            with color() and static Packed of(Color<N>)
//   write(void* out, DType, index, x)    one number
#pragma once

#include "cpu/dtype.h"
#include "cuda/augment/pixel.h"
#include "cuda/augment/plan.h"

namespace fastssl {
namespace FASTSSL_ISA {

constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps;
constexpr int kRows = 4;  // per thread
constexpr int kTileX = 2 * kLanes, kTileY = kRows * kWarps;
constexpr int kHalo = 12;  // largest radius of a blur that is done in a tile
constexpr int kHaloRows = kTileY + 2 * kHalo;
constexpr int kPitch = kTileX + 2 * kHalo + 1;  // odd: lanes on consecutive rows meet different banks
constexpr int kRowPitch = kTileX + 1;
constexpr int kWeights = 2 * kHalo + 1 + 3;
constexpr int kTableColumns = 6;  // address, height, width, strides of channels, rows, pixels
constexpr int kPlanes = 64;       // channels per launch

FASTSSL_HD constexpr int tiles_along(int size, int tile) { return (size + tile - 1) / tile; }

// One launch: `images` images of a view from number `first` of the batch.
struct Job {
  const std::int64_t* table;  // as in Images
  const std::uint8_t* data;
  int source_height, source_width;
  std::int64_t image_stride, channel_stride, row_stride, pixel_stride;

  const float* parameters;
  int steps, passes, pass;
  int height, width, channels, first_channel;
  std::int64_t first;
  void* out;
  DType dtype;
  float mean[kPlanes], scale[kPlanes];  // of channels first_channel, ...: out = (x - mean) scale

  const void* before;        // Packed [images, planes, height, width] of the pass before
  void* after;               // of this pass
  const float* gray_before;  // [images, planes, tiles]: sums of gray
  float* gray_after;
};

FASTSSL_HD Image image_of(const Job& job, std::int64_t i) {
  if (job.table == nullptr) {
    return {job.data + i * job.image_stride,
            job.source_height,
            job.source_width,
            job.channel_stride,
            job.row_stride,
            job.pixel_stride};
  }
  const std::int64_t* row = job.table + kTableColumns * i;
  return {reinterpret_cast<const std::uint8_t*>(row[0]),
          static_cast<int>(row[1]),
          static_cast<int>(row[2]),
          row[3],
          row[4],
          row[5]};
}

// What a pass does after its first pointwise steps.
enum class Mode { kNone, kBlur, kWideBlur, kSobel, kRotate };

template <int N, class Memory>
class Tile {
 public:
  using Packed = typename Memory::template Packed<N>;

  // Shared memory of a pass.
  struct Near {
    Packed pixels[kHaloRows * kPitch];   // the tile and its surroundings
    Packed rows[kHaloRows * kRowPitch];  // blurred along x
    float weights[kWeights];
  };
  struct Wide {
    Color<N> pixels[kWarps * kTileX];  // a part of the surroundings
    Color<N> rows[kWarps * kTileX];    // blurred along x
    Color<N> sums[kTileY * kTileX];
  };
  // Shared memory of pass 0: taps along the axes of the finished view.
  struct Axes {
    Taps<float> x[kTileX], y[kTileY];
  };

  // Reads through the steps: for one thread of a block.
  FASTSSL_HD static Plan plan_of(const Job& job, int image) {
    const float* record = record_of(job, image);
    return {segment_of(record, job.steps, job.height, job.width, job.pass),
            barriers_of(record, job.steps, job.height, job.width) > job.passes};
  }

  // image, plane, number: of the tile, in this launch.
  FASTSSL_HD Tile(const Job& job, const Plan& plan, int image, int plane, int number)
      : job_(job), segment_(plan.segment), too_many_(plan.too_many) {
    const int across = tiles_along(job.width, kTileX);
    image_ = image;
    y0_ = number / across * kTileY;
    x0_ = number % across * kTileX;
    height_ = least(job.height - y0_, kTileY);
    width_ = least(job.width - x0_, kTileX);
    planes_ = N == 3 ? 1 : least(job.channels - job.first_channel, kPlanes);
    plane_ = N == 3 ? 0 : plane;  // known to the compiler
    record_ = record_of(job, image);
    frame_ = {job.height, job.width,        job.channels, N == 3 ? 0 : job.first_channel + plane,
              0.0f,       job.mean + plane_};
  }

  // Whether this pass has anything to do for this image.
  FASTSSL_HD bool idle() const { return job_.pass > 0 && (too_many_ || segment_.first == job_.steps); }
  FASTSSL_HD bool is_last() const { return too_many_ || segment_.last == job_.steps; }
  FASTSSL_HD bool needs_gray() const {
    return segment_.first < job_.steps && step_of(record_, segment_.first).code == kContrast;
  }
  // Sums of gray from the pass before, and where this tile's own goes.
  FASTSSL_HD std::int64_t gray_index(int number) const {
    const std::int64_t tiles =
        static_cast<std::int64_t>(tiles_along(job_.height, kTileY)) * tiles_along(job_.width, kTileX);
    return (static_cast<std::int64_t>(image_) * planes_ + plane_) * tiles + number;
  }
  FASTSSL_HD void set_gray(double sum) {
    frame_.gray_mean = static_cast<float>(sum / (static_cast<double>(job_.height) * job_.width));
  }

  FASTSSL_HD Mode mode() const {
    if (segment_.middle == segment_.last) return Mode::kNone;
    const Step step = step_of(record_, segment_.middle);
    if (step.code == kRotate) return Mode::kRotate;
    if (step.code == kSobel) return Mode::kSobel;
    return radius() <= kHalo ? Mode::kBlur : Mode::kWideBlur;
  }
  // Of the pixels around the tile that the middle step reads.
  FASTSSL_HD int radius() const {
    const Step step = step_of(record_, segment_.middle);
    return step.code == kBlur ? blur_radius(step, job_.height, job_.width) : 1;
  }

  // --- pass 0
  // -------------------------------------------------------------------------------------------------

  template <bool bicubic>
  FASTSSL_HD void stage_taps(int thread, Axes* axes) const {
    const Image image = image_of(job_, job_.first + image_);
    const Geometry g = geometry(image);
    if (thread < kTileX) {
      axes->x[thread] = taps_along<bicubic>(g, 0, least(x0_ + thread, job_.width - 1), g.turns & 1);
    } else if (thread < kTileX + kTileY) {
      const int y = thread - kTileX;
      axes->y[y] = taps_along<bicubic>(g, least(y0_ + y, job_.height - 1), 0, !(g.turns & 1));
    }
  }

  // Returns the thread's part of the sum of gray.
  template <bool bicubic>
  FASTSSL_HD float resample(int thread, const Axes& axes) const {
    const Image image = image_of(job_, job_.first + image_);
    const Geometry g = geometry(image);
    const bool turned = g.turns & 1;
    float sum = 0.0f;
    const int row = thread / kLanes * kRows;
    for (int column = thread % kLanes; column < width_ && row < height_; column += kLanes) {
      Color<N> colors[kRows] = {};
      FASTSSL_HD_LOOP  // loops of unknown length gain nothing from standing four times
          for (int k = 0; k < kRows; ++k) {
        const Taps<float>&x = axes.x[column], &y = axes.y[row + k];
        set_one_of(colors, k,
                   resampled<N, bicubic>(image, g, frame_.channel, turned ? x : y, turned ? y : x));
      }
      apply_steps(record_, segment_.first, segment_.last, frame_, y0_ + row, x0_ + column, colors);
      sum += finish(row, column, colors);
    }
    return sum;
  }

  // --- the other passes
  // ---------------------------------------------------------------------------------------

  FASTSSL_HD void stage_weights(int thread, float* weights) const {
    const int r = radius();
    if (thread >= kWeights) return;
    const float sigma = step_of(record_, segment_.middle).a;
    float sum = 0.0f;
    for (int t = -r; t <= r; ++t) sum += blur_weight(sigma, t);
    weights[thread] = thread <= 2 * r ? blur_weight(sigma, thread - r) / sum : 0.0f;
  }

  // The tile and what lies around it, after the first pointwise steps. Up to three rows and columns more than
  // the view has are filled: `slide` gives them no weight but reads them.
  FASTSSL_HD void stage_pixels(int thread, Packed* pixels) const {
    const int r = radius();
    const bool reflect = step_of(record_, segment_.middle).code == kBlur;
    const int rows = rounded(height_) + 2 * r, columns = rounded(width_) + 2 * r;
    for (int row = thread / kLanes; row < rows; row += kWarps) {
      const int y = at_border(y0_ + row - r, job_.height, reflect);
      for (int column = thread % kLanes; column < columns; column += kLanes) {
        const int x = at_border(x0_ + column - r, job_.width, reflect);
        pixels[row * kPitch + column] = Packed::of(first_steps(y, x));
      }
    }
  }

  FASTSSL_HD void blur_rows(int thread, Near* near) const {
    const int r = radius(), rows = rounded(height_) + 2 * r;
    for (int column = thread / kLanes * 4; column < width_; column += kWarps * 4) {
      for (int row = thread % kLanes; row < rows; row += kLanes) {
        Color<N> sums[4];
        slide<N>(near->pixels + row * kPitch + column, 1, near->weights, 2 * r + 1, sums);
        FASTSSL_HD_UNROLL
        for (int k = 0; k < 4; ++k) near->rows[row * kRowPitch + column + k] = Packed::of(sums[k]);
      }
    }
  }

  // A blur that reaches beyond the halo: kWarps rows of the surroundings from `row` on, kTileX columns from
  // `column` on, numbered from the tile's corner.
  FASTSSL_HD void wide_pixels(int thread, int row, int column, Wide* wide) const {
    for (int i = thread; i < kWarps * kTileX; i += kThreads) {
      const int y = at_border(y0_ + row + i / kTileX, job_.height, true);
      const int x = at_border(x0_ + column + i % kTileX, job_.width, true);
      wide->pixels[i] = first_steps(y, x);
    }
  }
  FASTSSL_HD void wide_rows(int thread, int column, Wide* wide) const {
    const int r = radius();
    const float sigma = step_of(record_, segment_.middle).a;
    for (int i = thread; i < kWarps * kTileX; i += kThreads) {
      const int x = i % kTileX, begin = most(column, x - r), end = least(column + kTileX, x + r + 1);
      Color<N> sum = column == -r ? Color<N>{} : wide->rows[i];
      for (int j = begin; j < end; ++j) {
        add_product(&sum, blur_weight(sigma, j - x), wide->pixels[i - x + j - column]);
      }
      wide->rows[i] = sum;
    }
  }
  FASTSSL_HD void wide_columns(int thread, int row, Wide* wide) const {
    const int r = radius();
    const float sigma = step_of(record_, segment_.middle).a;
    for (int i = thread; i < kTileY * kTileX; i += kThreads) {
      const int y = i / kTileX, begin = most(row, y - r), end = least(row + kWarps, y + r + 1);
      Color<N> sum = row == -r ? Color<N>{} : wide->sums[i];
      for (int j = begin; j < end; ++j) {
        add_product(&sum, blur_weight(sigma, j - y), wide->rows[(j - row) * kTileX + i % kTileX]);
      }
      wide->sums[i] = sum;
    }
  }

  FASTSSL_HD void stage_rotation(int thread, Rotation<float>* rotation) const {
    if (thread == 0) *rotation = rotation_of<float>(step_of(record_, segment_.middle));
  }

  // The middle step's result and everything after it. Returns the thread's part of the sum of gray.
  FASTSSL_HD float finish_pass(int thread, Mode mode, const void* shared) const {
    const Near& near = *static_cast<const Near*>(shared);
    const Wide& wide = *static_cast<const Wide*>(shared);
    const auto& rotation = *static_cast<const Rotation<float>*>(shared);
    const float wide_scale = mode == Mode::kWideBlur ? scale_of_wide() : 0.0f;
    const int row = thread / kLanes * kRows;
    float sum = 0.0f;
    for (int column = thread % kLanes; column < width_ && row < height_; column += kLanes) {
      if (mode == Mode::kNone || mode == Mode::kBlur) {
        Color<N> colors[kRows];
        if (mode == Mode::kNone) {
          FASTSSL_HD_UNROLL
          for (int k = 0; k < kRows; ++k)
            colors[k] = load(least(y0_ + row + k, job_.height - 1), x0_ + column);
        } else {
          slide<N>(near.rows + row * kRowPitch + column, kRowPitch, near.weights, 2 * radius() + 1, colors);
        }
        const int first = mode == Mode::kNone ? segment_.first : segment_.middle + 1;
        apply_steps(record_, first, segment_.last, frame_, y0_ + row, x0_ + column, colors);
        sum += finish(row, column, colors);
        continue;
      }
      FASTSSL_HD_LOOP
      for (int k = row; k < least(row + kRows, height_); ++k) {
        Color<N> color[1] = {{}};
        if (mode == Mode::kWideBlur) add_product(&color[0], wide_scale, wide.sums[k * kTileX + column]);
        if (mode == Mode::kSobel) color[0] = sobel_at(near.pixels + k * kPitch + column);
        if (mode == Mode::kRotate) color[0] = rotated_at(rotation, y0_ + k, x0_ + column);
        apply_steps(record_, segment_.middle + 1, segment_.last, frame_, y0_ + k, x0_ + column, color);
        sum += finish(k, column, color);
      }
    }
    return sum;
  }

 private:
  FASTSSL_HD static const float* record_of(const Job& job, int image) {
    return job.parameters + (job.first + image) * (kHeader + static_cast<std::int64_t>(kStep) * job.steps);
  }

  FASTSSL_HD static int rounded(int size) { return (size + 3) & ~3; }

  FASTSSL_HD static int at_border(int i, int size, bool reflect) {
    return within(reflect ? reflected(i, size) : i, 0, size - 1);
  }

  FASTSSL_HD Geometry geometry(const Image& image) const {
    return geometry_of(record_, image.height, image.width, job_.height, job_.width);
  }

  // Of the pixel (y, x) of the finished view: along the crop's rows or along its columns.
  template <bool bicubic>
  FASTSSL_HD Taps<float> taps_along(const Geometry& g, int y, int x, bool rows) const {
    unturned(g, job_.height, job_.width, &y, &x);
    return taps_of<float, bicubic>(rows ? y : x, rows ? g.height : g.width, rows ? job_.height : job_.width);
  }

  FASTSSL_HD std::int64_t pixel_index(int y, int x) const {
    return ((static_cast<std::int64_t>(image_) * planes_ + plane_) * job_.height + y) * job_.width + x;
  }
  FASTSSL_HD Color<N> load(int y, int x) const {
    return static_cast<const Packed*>(job_.before)[pixel_index(y, x)].color();
  }
  FASTSSL_HD Color<N> first_steps(int y, int x) const {
    Color<N> colors[1] = {load(y, x)};
    apply_steps(record_, segment_.first, segment_.middle, frame_, y, x, colors);
    return colors[0];
  }

  // corner: what lies above and to the left of the pixel.
  FASTSSL_HD static Color<N> sobel_at(const Packed* corner) {
    const Color<N> a0 = corner[0].color(), a1 = corner[1].color(), a2 = corner[2].color();
    const Color<N> b0 = corner[kPitch].color(), b2 = corner[kPitch + 2].color();
    const Color<N> c0 = corner[2 * kPitch].color(), c1 = corner[2 * kPitch + 1].color(),
                   c2 = corner[2 * kPitch + 2].color();
    Color<N> result;
    FASTSSL_HD_UNROLL
    for (int c = 0; c < N; ++c) {
      result.v[c] = sobel_magnitude(a0.v[c], a1.v[c], a2.v[c], b0.v[c], b2.v[c], c0.v[c], c1.v[c], c2.v[c]);
    }
    return result;
  }

  FASTSSL_HD Color<N> rotated_at(const Rotation<float>& rotation, int y, int x) const {
    Color<N> sum = {};
    const float mask = visit_rotated(
        rotation, job_.height, job_.width, y, x,
        [&](float weight, int row, int column) { add_product(&sum, weight, first_steps(row, column)); });
    FASTSSL_HD_UNROLL
    for (int c = 0; c < N; ++c) sum.v[c] = filled(sum.v[c], mask, rotation.fill);
    return sum;
  }

  FASTSSL_HD float scale_of_wide() const {
    const int r = radius();
    const float sigma = step_of(record_, segment_.middle).a;
    float sum = 0.0f;
    for (int t = -r; t <= r; ++t) sum += blur_weight(sigma, t);
    return 1.0f / (sum * sum);
  }

  // Results go out normalised, what a further pass takes up stays in [0, 1] with its sum of gray.
  template <int K>
  FASTSSL_HD float finish(int row, int column, const Color<N> (&colors)[K]) const {
    float sum = 0.0f;
    FASTSSL_HD_UNROLL
    for (int k = 0; k < K; ++k) {
      if (row + k >= height_) continue;
      const int y = y0_ + row + k, x = x0_ + column;
      if (!is_last()) {
        static_cast<Packed*>(job_.after)[pixel_index(y, x)] = Packed::of(colors[k]);
        sum += gray_of(colors[k]);
        continue;
      }
      const std::int64_t plane = (job_.first + image_) * job_.channels + frame_.channel;
      FASTSSL_HD_UNROLL
      for (int c = 0; c < N; ++c) {
        const float value = (colors[k].v[c] - frame_.mean[c]) * job_.scale[plane_ + c];
        Memory::write(job_.out, job_.dtype, ((plane + c) * job_.height + y) * job_.width + x,
                      too_many_ ? nan() : value);
      }
    }
    return sum;
  }

  FASTSSL_HD static float nan() { return __builtin_nanf(""); }

  const Job& job_;
  const Segment segment_;
  const bool too_many_;
  const float* record_;
  Frame<N> frame_;
  int image_, plane_, planes_;  // in this launch
  int y0_, x0_, height_, width_;
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
