#include "reconstruction.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace fastssl {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace

void patch_loss(const PatchLossProblem& p, const PatchLossOutputs& out) {
  require(p.image != nullptr && p.prediction != nullptr && p.weight != nullptr,
          "patch_loss: image, prediction and weight must not be null");
  require(p.batch >= 1 && p.channels >= 1 && p.channels <= kMostChannels && p.tokens >= 0,
          "patch_loss: batch must be at least 1, channels from 1 to 4, tokens at least 0");
  require(p.patch_size >= 1 && p.height >= 1 && p.width >= 1 && p.height % p.patch_size == 0 &&
              p.width % p.patch_size == 0,
          "patch_loss: patch_size must divide height and width");
  require(!p.normalize || p.patch_size * p.patch_size * p.channels >= 2,
          "patch_loss: normalised patches must have at least two numbers");
  require(p.pixel_type != PixelType::kFloat64 || p.dtype == DType::kFloat64,
          "patch_loss: a float64 image needs a float64 prediction");
  require((out.gradient == nullptr) == (out.factor == nullptr), "patch_loss: gradient needs factor");
  static const PatchLossKernels kernels = FASTSSL_BEST_OF(patch_loss_kernels);
  (p.dtype == DType::kFloat64 ? kernels.float64 : kernels.float32)(p, out);
}

}  // namespace fastssl
