#include "masking.h"

#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace fastssl {
namespace {

const MaskingKernels& kernels() {
  static const MaskingKernels best = FASTSSL_BEST_OF(masking_kernels);
  return best;
}

void require(bool condition, const char* operation, const char* what) {
  if (!condition) throw std::invalid_argument(std::string(operation) + ": " + what);
}

// Rows of two dtypes that meet as the same Real.
template <class Kernel>
Kernel of(const ByReal<Kernel>& kernel, DType from, DType to, const char* name) {
  const bool wide = to == DType::kFloat64;
  require((from == DType::kFloat64) == wide, name, "float64 must meet float64");
  return wide ? kernel.float64 : kernel.float32;
}

// Places are 32-bit numbers.
template <class Problem>
void require_sizes(const Problem& p, const char* name) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  require(p.batch >= 1 && p.dim >= 1, name, "batch and dim must be at least 1");
  require(p.length >= 1 && p.length < kMost, name, "length must be in [1, 2^31)");
  require(p.kept >= 0 && p.kept < kMost && p.prefix >= 0, name,
          "kept must be in [0, 2^31), prefix not negative");
}

}  // namespace

void gather_tokens(const GatherProblem& p, const Rows& out) {
  require_sizes(p, "gather_tokens");
  require(p.x.data != nullptr && p.ids != nullptr && out.data != nullptr, "gather_tokens",
          "x, ids and out must not be null");
  require(p.prefix == 0 || p.prefix_rows != nullptr, "gather_tokens", "prefix must not be null");
  of(kernels().gather, p.x.dtype, out.dtype, "gather_tokens")(p, out);
}

void gather_tokens_grad(const GatherGradProblem& p, const GradOfTokens& out) {
  require_sizes(p, "gather_tokens_grad");
  require(p.gradient.data != nullptr && p.ids != nullptr, "gather_tokens_grad",
          "gradient and ids must not be null");
  require(out.sums != nullptr || (p.prefix == 0 && !out.with_positions), "gather_tokens_grad",
          "sums must not be null");
  of(kernels().gather_grad, p.gradient.dtype, out.dx_dtype, "gather_tokens_grad")(p, out);
}

void unshuffle_tokens(const UnshuffleProblem& p, const Rows& out) {
  require_sizes(p, "unshuffle_tokens");
  require(p.kept <= p.length, "unshuffle_tokens", "kept must be at most length");
  require(p.x.data != nullptr && p.restore != nullptr && p.mask_token != nullptr && out.data != nullptr,
          "unshuffle_tokens", "x, restore, mask_token and out must not be null");
  of(kernels().unshuffle, p.x.dtype, out.dtype, "unshuffle_tokens")(p, out);
}

void unshuffle_tokens_grad(const UnshuffleGradProblem& p, const GradOfTokens& out) {
  require_sizes(p, "unshuffle_tokens_grad");
  require(p.kept <= p.length, "unshuffle_tokens_grad", "kept must be at most length");
  require(p.gradient.data != nullptr && p.restore != nullptr, "unshuffle_tokens_grad",
          "gradient and restore must not be null");
  require(out.sums != nullptr || !out.with_positions, "unshuffle_tokens_grad", "sums must not be null");
  of(kernels().unshuffle_grad, p.gradient.dtype, out.dx_dtype, "unshuffle_tokens_grad")(p, out);
}

void visible_patches(const PatchProblem& p, const Rows& out) {
  const char* name = "visible_patches";
  require(
      p.images != nullptr && p.ids != nullptr && p.mean != nullptr && p.std != nullptr && out.data != nullptr,
      name, "images, ids, mean, std and out must not be null");
  require(p.batch >= 1 && p.channels >= 1 && p.kept >= 1, name, "there must be images, channels and patches");
  require(p.patch_height >= 1 && p.patch_width >= 1 && p.height >= 1 && p.width >= 1 &&
              p.height % p.patch_height == 0 && p.width % p.patch_width == 0,
          name, "patches must divide the image");
  require(p.pixel_type >= 0 && p.pixel_type <= kUint8, name, "pixel_type must be known");
  (out.dtype == DType::kFloat64 ? kernels().patches.float64 : kernels().patches.float32)(p, out);
}

}  // namespace fastssl
