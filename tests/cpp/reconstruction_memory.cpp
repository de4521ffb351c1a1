// Runs the patch loss of the chosen instruction set (FASTSSL_CPU_ISA) on small odd sizes with buffers of
// exactly the right length. Built with AddressSanitizer and UBSan: reading or writing outside of them ends
// the program. Rows of patches that are left out have to come back as zeros, all others finite and not zero.
#include <cstdio>
#include <vector>

#include "cpu/reconstruction/reconstruction.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

std::vector<char> image_of(PixelType type, std::int64_t count) {
  if (type != PixelType::kUint8) return matrix(static_cast<DType>(type), 1, count, count);
  std::vector<char> bytes(count);
  for (char& byte : bytes) byte = static_cast<char>(std::rand());
  return bytes;
}

bool run(DType dtype, PixelType pixel_type, std::int64_t channels, std::int64_t size, bool channels_last,
         std::int64_t tokens, PatchError error) {
  const std::int64_t batch = 2, rows = 2, columns = 3, patches = rows * columns;
  const std::int64_t numbers = size * size * channels, stride = numbers + size % 2;
  PatchLossProblem p{};
  p.batch = batch;
  p.channels = channels;
  p.height = rows * size;
  p.width = columns * size;
  p.image_stride = channels * p.height * p.width;
  p.channel_stride = channels_last ? 1 : p.height * p.width;
  p.row_stride = channels_last ? p.width * channels : p.width;
  p.pixel_stride = channels_last ? channels : 1;
  const std::vector<char> image = image_of(pixel_type, batch * p.image_stride);
  const std::vector<char> prediction = matrix(dtype, batch * (tokens + patches), numbers, stride);
  std::vector<char> weight = vector_of(dtype, batch * patches, 0.5);
  const std::size_t real = dtype == DType::kFloat64 ? 8 : 4;
  for (std::int64_t l = 0; l < batch * patches; l += 3) std::memset(weight.data() + l * real, 0, real);
  p.image = image.data();
  p.pixel_type = pixel_type;
  for (std::int64_t c = 0; c < channels; ++c) {
    p.scale[c] = 0.25;
    p.shift[c] = 0.125;
  }
  p.prediction = prediction.data();
  p.dtype = dtype;
  p.prediction_stride = (tokens + patches) * stride;
  p.patch_stride = stride;
  p.tokens = tokens;
  p.weight = weight.data();
  p.patch_size = size;
  p.normalize = numbers > 1;
  p.channels_first = size % 3 == 0;
  p.error = error;
  p.beta = 0.5;
  p.threads = 2;

  std::vector<char> loss = vector_of(dtype, batch * patches, kNaN);
  std::vector<char> gradient(batch * (tokens + patches) * numbers * size_of(dtype), static_cast<char>(0xff));
  patch_loss(p, {loss.data(), gradient.data(), weight.data()});
  patch_loss(p, {loss.data(), nullptr, nullptr});
  bool good = all_finite(loss, dtype == DType::kFloat64);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t row = 0; row < tokens + patches; ++row) {
      const bool left_out = row < tokens || (b * patches + row - tokens) % 3 == 0;
      const char* begin = gradient.data() + (b * (tokens + patches) + row) * numbers *
                                                static_cast<std::int64_t>(size_of(dtype));
      bool zeros = true;
      for (std::size_t at = 0; at < numbers * size_of(dtype); ++at) zeros = zeros && begin[at] == 0;
      good = good && zeros == left_out;
    }
  }
  if (!good) {
    std::printf(
        "wrong: dtype %d, pixels %d, %ld channels, size %ld, channels_last %d, tokens %ld, error %d\n",
        static_cast<int>(dtype), static_cast<int>(pixel_type), static_cast<long>(channels),
        static_cast<long>(size), channels_last, static_cast<long>(tokens), static_cast<int>(error));
  }
  return good;
}

}  // namespace

int main() {
  bool good = true;
  const std::int64_t sizes[] = {1, 2, 3, 5, 8, 16, 31};  // 31: more than one chunk
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    for (PixelType pixel_type : {PixelType::kFloat32, PixelType::kFloat64, PixelType::kBFloat16,
                                 PixelType::kFloat16, PixelType::kUint8}) {
      if (pixel_type == PixelType::kFloat64 && dtype != DType::kFloat64) continue;
      for (std::int64_t size : sizes) {
        for (std::int64_t channels = 1; channels <= kMostChannels; ++channels) {
          const auto error = static_cast<PatchError>((size + channels) % 3);
          for (bool channels_last : {false, true})
            good = run(dtype, pixel_type, channels, size, channels_last, size % 2, error) && good;
        }
      }
    }
  }
  std::puts(good ? "clean" : "wrong: what was printed above");
  return good ? 0 : 1;
}
