// A patch of an image in the cache: its pixels as they lie, then in the order of the predictions.
#pragma once

#include <utility>

#include "cpu/convert.h"
#include "reconstruction.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace reconstruction {

FASTSSL_INLINE std::int64_t pixel_bytes(PixelType type) {
  return type == PixelType::kUint8 ? 1 : element_bytes(static_cast<DType>(type));
}

// [count] pixels, `stride` elements apart, become scale x + shift. Where they lie side by side, as many at a
// time as a vector has lanes: a loop of known length is what compilers make one of.
template <class S, class Real, class Pixel, class Convert>
FASTSSL_INLINE void read_pixels(const Pixel* pixels, std::int64_t stride, std::int64_t count, Real scale,
                                Real shift, Real* out, const Convert& convert) {
  std::int64_t x = 0;
  for (; stride == 1 && x + S::kLanes <= count; x += S::kLanes) {
    FASTSSL_UNROLL
    for (int lane = 0; lane < S::kLanes; ++lane) out[x + lane] = convert(pixels[x + lane]) * scale + shift;
  }
  for (; x < count; ++x) out[x] = convert(pixels[x * stride]) * scale + shift;
}

// The patch whose first pixel is at `place`, as [channels][patch_size][patch_size].
template <class S, class Real, class Pixel, class Convert>
FASTSSL_INLINE void read_patch(const PatchLossProblem& p, const void* place, Real* out,
                               const Convert& convert) {
  const auto* first = static_cast<const Pixel*>(place);
  const std::int64_t size = p.patch_size;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const Real scale = static_cast<Real>(p.scale[c]), shift = static_cast<Real>(p.shift[c]);
    for (std::int64_t y = 0; y < size; ++y)
      read_pixels<S, Real>(first + c * p.channel_stride + y * p.row_stride, p.pixel_stride, size, scale,
                           shift, out + (c * size + y) * size, convert);
  }
}

template <class S, class Real>
void read_patch(const PatchLossProblem& p, const void* place, Real* out) {
  switch (p.pixel_type) {
    case PixelType::kFloat32:
      return read_patch<S, Real, float>(p, place, out, [](float x) { return static_cast<Real>(x); });
    case PixelType::kFloat64:
      return read_patch<S, Real, double>(p, place, out, [](double x) { return static_cast<Real>(x); });
    case PixelType::kBFloat16:
      return read_patch<S, Real, std::uint16_t>(
          p, place, out, [](std::uint16_t x) { return static_cast<Real>(from_bfloat16(x)); });
    case PixelType::kFloat16:
      return read_patch<S, Real, std::uint16_t>(
          p, place, out, [](std::uint16_t x) { return static_cast<Real>(from_float16(x)); });
    case PixelType::kUint8:
      return read_patch<S, Real, std::uint8_t>(
          p, place, out, [](std::uint8_t x) { return static_cast<Real>(static_cast<std::int32_t>(x)); });
  }
}

template <class V, class Ints, int... lane>
FASTSSL_INLINE V select_lanes(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lane...);
#else
  return __builtin_shuffle(a, b, Ints{lane...});
#endif
}

// Lane i of the result is number kFirst + i of the kChannels vectors taken in turns: pixel (kFirst + i) /
// kChannels of channel (kFirst + i) % kChannels. Channel after channel takes its lanes.
template <class S, int kChannels, int kFirst, int kChannel, int... lane>
FASTSSL_INLINE typename S::Vec take_turns(const typename S::Vec* channels, typename S::Vec taken,
                                          std::integer_sequence<int, lane...> lanes) {
  if constexpr (kChannel == kChannels) {
    return taken;
  } else {
    taken = select_lanes<typename S::Vec, typename S::Ints,
                         ((kFirst + lane) % kChannels == kChannel ? S::kLanes + (kFirst + lane) / kChannels
                                                                  : lane)...>(taken, channels[kChannel]);
    return take_turns<S, kChannels, kFirst, kChannel + 1>(channels, taken, lanes);
  }
}

template <class S, int kChannels, class Real, int... part>
FASTSSL_INLINE void interleave_vectors(const typename S::Vec* channels, Real* out,
                                       std::integer_sequence<int, part...>) {
  constexpr auto kLanes = std::make_integer_sequence<int, S::kLanes>{};
  (S::store(out + part * S::kLanes,
            take_turns<S, kChannels, part * S::kLanes, 0>(channels, typename S::Vec{}, kLanes)),
   ...);
}

// [kChannels][count] -> [count][kChannels]. Reads and writes up to kLanes pixels past the end.
template <class S, int kChannels, class Real>
FASTSSL_INLINE void interleave(const Real* pixels, std::int64_t count, Real* out) {
  for (std::int64_t k = 0; k < count; k += S::kLanes) {
    typename S::Vec channels[kChannels];
    FASTSSL_UNROLL
    for (int c = 0; c < kChannels; ++c) channels[c] = S::load(pixels + c * count + k);
    interleave_vectors<S, kChannels>(channels, out + k * kChannels,
                                     std::make_integer_sequence<int, kChannels>{});
  }
}

}  // namespace reconstruction
}  // namespace FASTSSL_ISA
}  // namespace fastssl
