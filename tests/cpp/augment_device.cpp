// The code of the CUDA kernels, compiled for the host: threads of a block run one after the other between
// barriers, blocks of a launch one after the other, as csrc/cuda/augment/views.cu launches them. Pixels are
// kept in float. tests/ops/test_augment_device.py calls it and compares with the definition.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "augment/sampling.h"
#include "cuda/augment/block.h"

namespace {

using namespace fastssl::portable;
using fastssl::DType;

struct FloatMemory {
  template <int N>
  struct Packed {
    float v[N];

    Color<N> color() const {
      Color<N> color;
      std::copy_n(v, N, color.v);
      return color;
    }
    static Packed of(const Color<N>& color) {
      Packed packed;
      std::copy_n(color.v, N, packed.v);
      return packed;
    }
  };

  static void write(void* out, DType, std::int64_t i, float x) { static_cast<float*>(out)[i] = x; }
};

template <class Work>
void each_thread(const Work& work) {
  for (int thread = 0; thread < kThreads; ++thread) work(thread);
}

template <int N>
float resample_block(const Tile<N, FloatMemory>& tile, bool bicubic) {
  typename Tile<N, FloatMemory>::Axes axes;
  float gray = 0.0f;
  if (bicubic) {
    each_thread([&](int thread) { tile.template stage_taps<true>(thread, &axes); });
    each_thread([&](int thread) { gray += tile.template resample<true>(thread, axes); });
  } else {
    each_thread([&](int thread) { tile.template stage_taps<false>(thread, &axes); });
    each_thread([&](int thread) { gray += tile.template resample<false>(thread, axes); });
  }
  return gray;
}

template <int N>
float continue_block(const Job& job, Tile<N, FloatMemory>& tile, int tiles) {
  using View = Tile<N, FloatMemory>;
  // NaN in every place that nothing is written to: what reads one shows.
  std::vector<unsigned char> memory(std::max(sizeof(typename View::Near), sizeof(typename View::Wide)), 0xFF);
  if (tile.needs_gray()) {
    double sum = 0.0;
    for (int i = 0; i < tiles; ++i) sum += job.gray_before[tile.gray_index(i)];
    tile.set_gray(sum);
  }
  const Mode mode = tile.mode();
  auto* near = reinterpret_cast<typename View::Near*>(memory.data());
  auto* wide = reinterpret_cast<typename View::Wide*>(memory.data());
  if (mode == Mode::kBlur) each_thread([&](int thread) { tile.stage_weights(thread, near->weights); });
  if (mode == Mode::kBlur || mode == Mode::kSobel) {
    each_thread([&](int thread) { tile.stage_pixels(thread, near->pixels); });
  }
  if (mode == Mode::kBlur) each_thread([&](int thread) { tile.blur_rows(thread, near); });
  if (mode == Mode::kRotate) {
    each_thread(
        [&](int thread) { tile.stage_rotation(thread, reinterpret_cast<Rotation<float>*>(memory.data())); });
  }
  const int r = mode == Mode::kWideBlur ? tile.radius() : 0;
  for (int row = -r; r > 0 && row < kTileY + r; row += kWarps) {
    for (int column = -r; column < kTileX + r; column += kTileX) {
      each_thread([&](int thread) { tile.wide_pixels(thread, row, column, wide); });
      each_thread([&](int thread) { tile.wide_rows(thread, column, wide); });
    }
    each_thread([&](int thread) { tile.wide_columns(thread, row, wide); });
  }
  float gray = 0.0f;
  each_thread([&](int thread) { gray += tile.finish_pass(thread, mode, memory.data()); });
  return gray;
}

// All launches for all images and some channels.
template <int N>
void launch(Job job, int images, int planes, bool bicubic) {
  using View = Tile<N, FloatMemory>;
  const int tiles = tiles_along(job.height, kTileY) * tiles_along(job.width, kTileX);
  const std::size_t blocks = static_cast<std::size_t>(images) * planes;
  using Pixels = std::vector<typename FloatMemory::Packed<N>>;
  Pixels pixels[2] = {Pixels(blocks * job.height * job.width), Pixels(blocks * job.height * job.width)};
  std::vector<float> sums[2] = {std::vector<float>(blocks * tiles), std::vector<float>(blocks * tiles)};
  for (job.pass = 0; job.pass <= job.passes; ++job.pass) {
    const int mine = job.pass % 2, other = 1 - mine;
    job.after = pixels[mine].data();
    job.gray_after = sums[mine].data();
    job.before = pixels[other].data();
    job.gray_before = sums[other].data();
    for (int image = 0; image < images; ++image) {
      for (int plane = 0; plane < planes; ++plane) {
        for (int number = 0; number < tiles; ++number) {
          View tile(job, View::plan_of(job, image), image, plane, number);
          if (tile.idle()) continue;
          const float gray =
              job.pass == 0 ? resample_block<N>(tile, bicubic) : continue_block<N>(job, tile, tiles);
          if (!tile.is_last()) job.gray_after[tile.gray_index(number)] = gray;
        }
      }
    }
  }
}

}  // namespace

extern "C" void philox4x32(const std::uint32_t* counter, const std::uint32_t* key, std::uint32_t* out) {
  const Words w = philox({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
  const std::uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
  std::copy_n(words, 4, out);
}

extern "C" void view_parameters(const std::int64_t* index, const std::int64_t* sizes, std::int64_t batch,
                                int out_height, int out_width, std::uint64_t seed, std::uint32_t epoch,
                                std::uint32_t view, const double* program, int entries, int entries_at_once,
                                float* out) {
  int slots = 0;
  for (int e = 0; e < entries; ++e) slots += slots_of(static_cast<int>(program[e * kEntry]));
  for (std::int64_t i = 0; i < batch; ++i) {
    const Draw draw = {seed,
                       epoch,
                       view,
                       static_cast<std::uint32_t>(index[i]),
                       static_cast<int>(sizes[2 * i]),
                       static_cast<int>(sizes[2 * i + 1]),
                       out_height,
                       out_width};
    for (int first = 0, slot = 0; first < entries; first += entries_at_once) {
      const int count = std::min(entries - first, entries_at_once);
      draw_entries(draw, program + first * kEntry, first, count, slot, out + i * (kHeader + kStep * slots));
      for (int e = first; e < first + count; ++e) slot += slots_of(static_cast<int>(program[e * kEntry]));
    }
  }
}

// table: as in Images, or null; stack: address, height, width and the strides of images, channels, rows,
// pixels.
extern "C" void augment_view(const std::int64_t* table, const std::int64_t* stack, int batch, int channels,
                             const float* parameters, int steps, int passes, int height, int width,
                             bool bicubic, const float* mean, const float* std, float* out) {
  Job job = {};
  job.table = table;
  job.data = reinterpret_cast<const std::uint8_t*>(stack[0]);
  job.source_height = static_cast<int>(stack[1]);
  job.source_width = static_cast<int>(stack[2]);
  job.image_stride = stack[3];
  job.channel_stride = stack[4];
  job.row_stride = stack[5];
  job.pixel_stride = stack[6];
  job.parameters = parameters;
  job.steps = steps;
  job.passes = passes < 0 ? steps : passes;
  job.height = height;
  job.width = width;
  job.channels = channels;
  job.out = out;
  job.dtype = DType::kFloat32;
  const int step = channels == 3 ? 3 : kPlanes;
  for (job.first_channel = 0; job.first_channel < channels; job.first_channel += step) {
    const int count = std::min(channels - job.first_channel, step);
    for (int c = 0; c < count; ++c) {
      job.mean[c] = mean[job.first_channel + c];
      job.scale[c] = 1.0f / std[job.first_channel + c];
    }
    if (channels == 3) {
      launch<3>(job, batch, 1, bicubic);
    } else {
      launch<1>(job, batch, count, bicubic);
    }
  }
}
