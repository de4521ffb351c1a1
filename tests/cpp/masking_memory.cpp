// Runs the masking kernels on small odd sizes with buffers of exactly the right length, of the chosen
// instruction set (FASTSSL_CPU_ISA). Built with AddressSanitizer and UBSan: reading or writing outside of
// them ends the program. Indices repeat and are out of range. Outputs start as NaN; gradients must come back
// finite.
#include <cstdio>
#include <vector>

#include "cpu/masking/masking.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

using Bytes = std::vector<char>;
using Ids = std::vector<std::int64_t>;

Ids ids_of(std::int64_t count, std::int64_t range) {
  Ids ids(count);
  for (std::int64_t i = 0; i < count; ++i) ids[i] = std::rand() % (range + 3) - 1;
  return ids;
}

bool finite(const Bytes& bytes, DType dtype) {
  return size_of(dtype) == 2 || all_finite(bytes, dtype == DType::kFloat64);
}

bool run(DType dtype, std::int64_t batch, std::int64_t length, std::int64_t kept, std::int64_t prefix,
         std::int64_t dim) {
  const std::int64_t stride = dim + batch % 3;
  const auto tokens = [&](const Bytes& x, std::int64_t rows) {
    return TokenRows{x.data(), dtype, rows * stride, stride};
  };
  const auto output = [&](std::int64_t rows) { return Bytes(batch * rows * dim * size_of(dtype), '\xff'); };
  const auto input = [&](std::int64_t rows) { return matrix(dtype, batch * rows, dim, stride); };
  const Bytes positions = vector_of(dtype, length * dim, 0.5), first = vector_of(dtype, prefix * dim, 0.25),
              token = vector_of(dtype, dim, 2);
  const Ids ids = ids_of(batch * kept, length), restore = ids_of(batch * length, length);

  Bytes out = output(prefix + kept);
  const Bytes x = input(length), short_x = input(prefix + kept), whole = input(prefix + length);
  gather_tokens({tokens(x, length), ids.data(), positions.data(), first.data(), first.data(), batch, length,
                 kept, prefix, dim, 2},
                {out.data(), dtype});
  out = output(prefix + length);
  unshuffle_tokens({tokens(short_x, prefix + kept), restore.data(), token.data(), positions.data(),
                    first.data(), batch, length, kept, prefix, dim, 2},
                   {out.data(), dtype});

  bool good = true;
  for (int wanted = 0; wanted < 4; ++wanted) {
    Bytes dx = output(length), sums = vector_of(dtype, (prefix + length) * dim, kNaN),
          mask = vector_of(dtype, dim, kNaN);
    GradOfTokens grads{wanted & 1 ? dx.data() : nullptr, dtype, nullptr, sums.data(), (wanted & 2) != 0};
    gather_tokens_grad({tokens(short_x, prefix + kept), ids.data(), batch, length, kept, prefix, dim, 2},
                       grads);
    sums.resize((prefix + (wanted & 2 ? length : 0)) * dim * (dtype == DType::kFloat64 ? 8 : 4));
    good = good && finite(sums, dtype == DType::kFloat64 ? dtype : DType::kFloat32) &&
           (!(wanted & 1) || finite(dx, dtype));
    dx = output(prefix + kept);
    sums = vector_of(dtype, (prefix + length) * dim, kNaN);
    grads = {wanted & 1 ? dx.data() : nullptr, dtype, mask.data(), sums.data(), (wanted & 2) != 0};
    unshuffle_tokens_grad(
        {tokens(whole, prefix + length), restore.data(), batch, length, kept, prefix, dim, 2}, grads);
    good = good && (!(wanted & 1) || finite(dx, dtype)) && all_finite(mask, dtype == DType::kFloat64) &&
           (!(wanted & 2) || all_finite(sums, dtype == DType::kFloat64));
  }

  Ids keep(batch * kept), masked(batch * (length - kept)), places(batch * length), index(batch, 5);
  std::vector<float> mask(batch * length, static_cast<float>(kNaN));
  const Bytes noise = matrix(dtype, batch, length, length);
  for (const void* from : {static_cast<const void*>(noise.data()), static_cast<const void*>(nullptr)}) {
    random_masks({from, dtype, index.data(), 1, 2, 3, batch, length, kept, 2},
                 {keep.data(), masked.data(), places.data(), mask.data()});
    for (const std::int64_t place : places) good = good && place >= 0 && place < length;
  }
  return good;
}

bool run_patches(int pixel_type, DType dtype, std::int64_t height, std::int64_t width,
                 std::int64_t patch_height, std::int64_t patch_width) {
  const std::int64_t batch = 2, channels = 3, kept = 5,
                     size = pixel_type == kUint8 ? 1
                            : pixel_type == 1    ? 8
                            : pixel_type == 0    ? 4
                                                 : 2;
  const Bytes images(batch * channels * height * width * size, 1);
  const Ids ids = ids_of(batch * kept, height / patch_height * (width / patch_width));
  const double mean[] = {0.1, 0.2, 0.3}, std[] = {0.5, 0.6, 0.7};
  Bytes out(batch * kept * channels * patch_height * patch_width * size_of(dtype));
  // Channels last.
  visible_patches({images.data(), pixel_type, channels * height * width, 1, width * channels, channels, batch,
                   channels, height, width, patch_height, patch_width, ids.data(), mean, std, kept, 2},
                  {out.data(), dtype});
  return true;
}

}  // namespace

int main() {
  bool good = true;
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    good = good && run(dtype, 3, 7, 3, 1, 13) && run(dtype, 1, 1, 1, 0, 1) && run(dtype, 5, 9, 9, 2, 1030) &&
           run(dtype, 40, 12, 4, 1, 2049);
    for (const int pixels : {0, 1, 2, 3, kUint8})
      good = good && run_patches(pixels, dtype, 6, 8, 3, 4) && run_patches(pixels, dtype, 3, 5, 1, 5);
  }
  std::puts(good ? "clean" : "wrong: a number is not finite, or a place out of range");
  return good ? 0 : 1;
}
