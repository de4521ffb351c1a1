// Makes views of small odd images that lie in buffers of exactly the right length, of the chosen instruction
// set (FASTSSL_CPU_ISA), in every memory layout, from drawn records and from records of nonsense. Built with
// AddressSanitizer and UBSan: reading or writing outside of them ends the program. Outputs start as NaN and
// must come back finite where the record is.
#include <cstdio>
#include <vector>

#include "cpu/augment/augment.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

constexpr std::int64_t kBatch = 3, kSteps = 12, kLength = 8 + 6 * kSteps;

std::int64_t below(std::int64_t n) { return std::rand() % n; }

enum Layout { kPlanar, kInterleaved, kPadded, kTransposed, kLayouts };

// One image whose last byte is the buffer's last.
struct Picture {
  std::vector<std::uint8_t> bytes;
  ImageSource source;

  Picture(std::int64_t channels, std::int64_t height, std::int64_t width, int layout) {
    source = {nullptr, height, width, 0, 0, 0};
    if (layout == kPlanar) {
      source.pixel_stride = 1;
      source.row_stride = width;
      source.channel_stride = width * height;
    } else if (layout == kInterleaved) {
      source.channel_stride = 1;
      source.pixel_stride = channels;
      source.row_stride = channels * width;
    } else if (layout == kPadded) {
      source.channel_stride = 1;
      source.pixel_stride = channels + 1;
      source.row_stride = (channels + 1) * width + 5;
    } else {
      source.row_stride = 1;
      source.pixel_stride = height;
      source.channel_stride = width * height;
    }
    const std::int64_t last = (channels - 1) * source.channel_stride + (height - 1) * source.row_stride +
                              (width - 1) * source.pixel_stride;
    bytes.resize(last + 1);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(below(256));
    source.data = bytes.data();
  }
};

float nonsense() {
  const float odd[] = {
      static_cast<float>(kNaN), 1e30f, -1e30f, -1.0f, 0.0f, 0.5f, 3.0f, 1e9f, -7.5f, 16777216.0f};
  return odd[below(10)];
}

// Every step once, in a random order.
std::vector<float> record(std::int64_t height, std::int64_t width, bool is_nonsense) {
  const std::int64_t top = below(height), left = below(width);
  std::vector<float> r(kLength, 0.0f);
  const double head[] = {double(top),
                         double(left),
                         double(1 + below(height - top)),
                         double(1 + below(width - left)),
                         double(below(2)),
                         double(below(2)),
                         double(below(4)),
                         0};
  for (int i = 0; i < 8; ++i) r[i] = is_nonsense ? nonsense() : static_cast<float>(head[i]);
  const float numbers[kSteps][6] = {{0},
                                    {1, 1.3f},
                                    {2, 0.6f},
                                    {3, 1.7f},
                                    {4, -0.2f},
                                    {5},
                                    {6, 0.5f},
                                    {7, 1.5f, 9},
                                    {8, 33, static_cast<float>(below(2)), 0.5f},
                                    {9, static_cast<float>(below(9)), static_cast<float>(below(9)), 5, 7, -1},
                                    {10, 0.1f, 0, 12345, 678, 1},
                                    {11}};
  const std::int64_t shift = below(kSteps);
  for (std::int64_t i = 0; i < kSteps; ++i) {
    for (int j = 0; j < 6; ++j) {
      float* x = &r[8 + 6 * i + j];
      *x = numbers[(5 * i + shift) % kSteps][j];
      if (is_nonsense && (j > 0 || below(8) == 0)) *x = nonsense();
    }
  }
  return r;
}

bool run(std::int64_t channels, int layout, DType dtype, bool bicubic, bool is_nonsense) {
  const std::int64_t sides[] = {1, 2, 3, 15, 16, 17, 33, 70, 131, 300};
  const std::int64_t view_sides[] = {1, 2, 7, 16, 17, 31, 40, 65};
  std::vector<Picture> pictures;
  std::vector<ImageSource> sources;
  for (int i = 0; i < kBatch; ++i) {
    pictures.emplace_back(channels, sides[below(10)], sides[below(10)], layout);
    sources.push_back(pictures.back().source);
  }
  std::vector<std::vector<float>> parameters;
  std::vector<std::vector<char>> outputs;
  std::vector<ViewOutput> views;
  for (int v = 0; v < 2; ++v) {
    const std::int64_t height = view_sides[below(8)], width = below(3) == 0 ? height : view_sides[below(8)];
    parameters.emplace_back();
    for (const Picture& picture : pictures) {
      const std::vector<float> r = record(picture.source.height, picture.source.width, is_nonsense);
      parameters.back().insert(parameters.back().end(), r.begin(), r.end());
    }
    outputs.emplace_back(kBatch * channels * height * width * size_of(dtype), '\xff');
    views.push_back({nullptr, kSteps, height, width, bicubic, nullptr});
  }
  for (int v = 0; v < 2; ++v) {
    views[v].parameters = parameters[v].data();
    views[v].out = outputs[v].data();
  }
  const std::vector<float> mean(channels, 0.5f), std(channels, 0.25f);
  augment_views({sources.data(), kBatch, channels, views.data(), 2, mean.data(), std.data(), dtype, 2});
  if (is_nonsense) return true;
  for (const auto& out : outputs) {
    if (dtype == DType::kFloat32 && !all_finite(out, false)) return false;
    const std::uint16_t exponent = dtype == DType::kBFloat16 ? 0x7f80 : 0x7c00;
    for (std::size_t at = 0; dtype != DType::kFloat32 && at < out.size(); at += 2) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, out.data() + at, 2);
      if ((bits & exponent) == exponent) return false;
    }
  }
  return true;
}

// Enough pixels that outputs go past the caches, from addresses of any alignment.
bool run_large(DType dtype, std::int64_t offset) {
  constexpr std::int64_t kMany = 40, kSide = 193, kChannels = 3;
  const Picture picture(kChannels, 64, 80, kInterleaved);
  const std::vector<ImageSource> sources(kMany, picture.source);
  std::vector<float> parameters;
  for (int i = 0; i < kMany; ++i) {
    std::vector<float> r = record(64, 80, false);
    r.resize(8 + 6 * 2);
    parameters.insert(parameters.end(), r.begin(), r.end());
  }
  const std::size_t skipped = offset * size_of(dtype),
                    bytes = kMany * kChannels * kSide * kSide * size_of(dtype);
  std::vector<char> out(skipped + bytes, '\xff');
  const ViewOutput view{parameters.data(), 2, kSide, kSide, false, out.data() + skipped};
  const float mean[] = {0.4f, 0.5f, 0.6f}, std[] = {0.2f, 0.3f, 0.4f};
  augment_views({sources.data(), kMany, kChannels, &view, 1, mean, std, dtype, 2});
  for (std::size_t i = 0; i < skipped; ++i) {
    if (out[i] != '\xff') return false;
  }
  return dtype != DType::kFloat32 || all_finite({out.begin() + skipped, out.end()}, false);
}

bool draws() {
  const double program[] = {0,   1,    0,   0.08, 1,  0.75, 1.34, 0,   0,   0,   0, 0,   10,  0.5, 1,   0,
                            0,   0,    0,   0,    0,  0,    0,    0,   20,  0.8, 2, 0.2, 1.8, 0.2, 1.8, 0.2,
                            1.8, -0.2, 0.2, 0,    25, 1,    3,    0.1, 0.3, 0.5, 2, -1,  0,   0,   0,   0};
  const std::int64_t index[] = {0, 7, 4294967295}, sizes[] = {1, 1, 480, 640, 3, 500};
  std::vector<float> records(3 * (8 + 6 * 5), static_cast<float>(kNaN));
  view_parameters({index, sizes, 3, 0, 0, 32, 48, 5, 1, 2, program, 4, records.data()});
  for (const float x : records) {
    if (!std::isfinite(x)) return false;
  }
  return true;
}

}  // namespace

int main() {
  for (const std::int64_t channels : {1, 2, 3, 5}) {
    for (int layout = 0; layout < kLayouts; ++layout) {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        for (const bool bicubic : {false, true}) {
          for (const bool is_nonsense : {false, true}) {
            for (int again = 0; again < 4; ++again) {
              if (run(channels, layout, dtype, bicubic, is_nonsense)) continue;
              std::printf("wrong: %d channels, layout %d, dtype %d, bicubic %d\n", static_cast<int>(channels),
                          layout, static_cast<int>(dtype), bicubic);
              return 1;
            }
          }
        }
      }
    }
  }
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (std::int64_t offset = 0; offset < 3; ++offset) {
      if (run_large(dtype, offset)) continue;
      std::printf("wrong: large, dtype %d, offset %d\n", static_cast<int>(dtype), static_cast<int>(offset));
      return 1;
    }
  }
  if (!draws()) {
    std::puts("wrong: a drawn record is not finite");
    return 1;
  }
  std::puts("clean");
  return 0;
}
