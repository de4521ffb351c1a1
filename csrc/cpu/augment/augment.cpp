#include "augment.h"

#include <cstdint>
#include <stdexcept>

#include "augment/sampling.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fastssl {
namespace {

constexpr std::int64_t kLargestSide = std::int64_t{1} << 24;  // a record holds whole numbers up to it

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

bool is_side(std::int64_t n) { return n >= 1 && n < kLargestSide; }

}  // namespace

void augment_views(const AugmentProblem& p) {
  require(p.images != nullptr && p.batch >= 1, "augment_views: images must be at least one");
  require(p.views != nullptr && p.view_count >= 1, "augment_views: parameters must be of at least one view");
  require(p.channels >= 1 && p.mean != nullptr && p.std != nullptr,
          "augment_views: images must have at least one channel, each with a mean and a std");
  require(p.dtype != DType::kFloat64, "augment_views: dtype must be float32, bfloat16 or float16");
  for (std::int64_t i = 0; i < p.batch; ++i) {
    const ImageSource& image = p.images[i];
    require(image.data != nullptr && is_side(image.height) && is_side(image.width),
            "augment_views: images must have sides in [1, 2^24)");
    require(image.channel_stride >= 0 && image.row_stride >= 0 && image.pixel_stride >= 0,
            "augment_views: images must not have negative strides");
  }
  for (std::int64_t v = 0; v < p.view_count; ++v) {
    const ViewOutput& view = p.views[v];
    require(view.parameters != nullptr && view.out != nullptr && view.steps >= 0,
            "augment_views: parameters and outputs must not be null");
    require(is_side(view.height) && is_side(view.width), "augment_views: views must have sides in [1, 2^24)");
    require(view.height * view.width < std::int64_t{1} << 31,
            "augment_views: a view must have fewer than 2^31 pixels");
  }
  static const AugmentKernel kernel = FASTSSL_BEST_OF(augment_kernel);
  kernel(p);
}

void view_parameters(const SampleProblem& p) {
  require(p.index != nullptr && p.program != nullptr && p.out != nullptr,
          "view_parameters: index, program and records must not be null");
  std::int64_t slots = 0;
  for (std::int64_t e = 0; e < p.entries; ++e) {
    const double group = p.program[portable::kEntry * e + 2];
    require(group >= 0 && group < static_cast<double>(p.entries),
            "view_parameters: a group must be an entry's number");
    slots += portable::slots_of(static_cast<int>(p.program[portable::kEntry * e]));
  }
  const std::int64_t length = portable::kHeader + portable::kStep * slots;
  const auto height = [&](std::int64_t i) { return p.sizes == nullptr ? p.height : p.sizes[2 * i]; };
  const auto width = [&](std::int64_t i) { return p.sizes == nullptr ? p.width : p.sizes[2 * i + 1]; };
  for (std::int64_t i = 0; i < p.batch; ++i)
    require(is_side(height(i)) && is_side(width(i)), "view_parameters: images must have sides in [1, 2^24)");
  constexpr std::int64_t kBlock = 32;     // records that are drawn by one thread after the other
  constexpr double kPerRecord = 1 << 11;  // a record takes about as long as so many multiply-adds
  const std::int64_t blocks = (p.batch + kBlock - 1) / kBlock;
  const int threads =
      threads_for(blocks < p.threads ? blocks : p.threads, kPerRecord * static_cast<double>(p.batch));
  run_team(threads, [&](Team& team) {
    team.for_each(blocks, [&](std::int64_t block) {
      const std::int64_t end = (block + 1) * kBlock < p.batch ? (block + 1) * kBlock : p.batch;
      for (std::int64_t i = block * kBlock; i < end; ++i) {
        const portable::Draw draw{p.seed,
                                  p.epoch,
                                  p.view,
                                  static_cast<std::uint32_t>(p.index[i]),
                                  static_cast<int>(height(i)),
                                  static_cast<int>(width(i)),
                                  static_cast<int>(p.out_height),
                                  static_cast<int>(p.out_width)};
        portable::draw_record(draw, p.program, static_cast<int>(p.entries), p.out + i * length);
      }
    });
  });
}

}  // namespace fastssl
