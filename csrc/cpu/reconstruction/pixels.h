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
FASTSSL_INLINE void read_patch(const PatchLossProblem& p, const Pixel* first, Real* out,
                               const Convert& convert) {
  const std::int64_t size = p.patch_size;
  for (std::int64_t c = 0; c < p.channels; ++c) {
    const Real scale = static_cast<Real>(p.scale[c]), shift = static_cast<Real>(p.shift[c]);
    for (std::int64_t y = 0; y < size; ++y)
      read_pixels<S, Real>(first + c * p.channel_stride + y * p.row_stride, p.pixel_stride, size, scale,
                           shift, out + (c * size + y) * size, convert);
  }
}

// Calls read(first pixel, how one is made Real).
template <class Real, class Read>
FASTSSL_INLINE auto with_pixels(PixelType type, const void* place, const Read& read) {
  switch (type) {
    case PixelType::kFloat32:
      return read(static_cast<const float*>(place), [](float x) { return static_cast<Real>(x); });
    case PixelType::kFloat64:
      return read(static_cast<const double*>(place), [](double x) { return static_cast<Real>(x); });
    case PixelType::kBFloat16:
      return read(static_cast<const std::uint16_t*>(place),
                  [](std::uint16_t x) { return static_cast<Real>(from_bfloat16(x)); });
    case PixelType::kFloat16:
      return read(static_cast<const std::uint16_t*>(place),
                  [](std::uint16_t x) { return static_cast<Real>(from_float16(x)); });
    default:
      return read(static_cast<const std::uint8_t*>(place),
                  [](std::uint8_t x) { return static_cast<Real>(static_cast<std::int32_t>(x)); });
  }
}

template <class S, class Real>
void read_patch(const PatchLossProblem& p, const void* place, Real* out) {
  with_pixels<Real>(p.pixel_type, place, [&](const auto* first, const auto& convert) {
    read_patch<S, Real>(p, first, out, convert);
  });
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

// Returns the sum of the vectors that it writes.
template <class S, int kChannels, class Real, int... part>
FASTSSL_INLINE typename S::Vec interleave_vectors(const typename S::Vec* channels, Real* out,
                                                  std::integer_sequence<int, part...>) {
  constexpr auto kLanes = std::make_integer_sequence<int, S::kLanes>{};
  typename S::Vec sum{};
  const auto write = [&](int number, typename S::Vec v) {
    S::store(out + number * S::kLanes, v);
    sum += v;
  };
  (write(part, take_turns<S, kChannels, part * S::kLanes, 0>(channels, typename S::Vec{}, kLanes)), ...);
  return sum;
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

// Colours whose rows fill whole vectors, for rows (y, x, channel): the usual case, which has a way of its
// own.
template <class S>
FASTSSL_INLINE bool is_usual(const PatchLossProblem& p) {
  return p.channels == 3 && !p.channels_first && p.patch_size % S::kLanes == 0;
}

// Sum of a patch (y, x, channel) of the usual kind, in the order in which `read_in_turns` adds.
template <class S, class Real>
FASTSSL_INLINE double sum_in_turns(const Real* patch, std::int64_t size) {
  double total = 0;
  for (std::int64_t y = 0; y < size; ++y) {
    typename S::Vec sum{};
    for (std::int64_t x = 0; x < size; x += S::kLanes, patch += 3 * S::kLanes) {
      typename S::Vec part{};
      for (int c = 0; c < 3; ++c) part += S::load(patch + c * S::kLanes);
      sum += part;
    }
    total += static_cast<double>(S::sum(sum));
  }
  return total;
}

// What `read_patch` and `interleave` do, in one go, for a patch of the usual kind whose pixels are neighbours
// in memory. Returns the sum.
template <class S, class Real, class Pixel, class Convert>
FASTSSL_INLINE double read_in_turns(const PatchLossProblem& p, const Pixel* first, Real* out,
                                    const Convert& convert) {
  using Vec = typename S::Vec;
  constexpr int kChannels = 3;
  constexpr auto kParts = std::make_integer_sequence<int, kChannels>{};
  Vec scale[kChannels], shift[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    scale[c] = S::broadcast(static_cast<Real>(p.scale[c]));
    shift[c] = S::broadcast(static_cast<Real>(p.shift[c]));
  }
  const std::int64_t size = p.patch_size;
  double total = 0;
  for (std::int64_t y = 0; y < size; ++y) {
    Vec sum{};
    for (std::int64_t x = 0; x < size; x += S::kLanes) {
      Vec channels[kChannels];
      FASTSSL_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        const Pixel* pixels = first + c * p.channel_stride + y * p.row_stride + x;
        Real lanes[S::kLanes];
        FASTSSL_UNROLL
        for (int lane = 0; lane < S::kLanes; ++lane) lanes[lane] = convert(pixels[lane]);
        channels[c] = S::load(lanes) * scale[c] + shift[c];
      }
      sum += interleave_vectors<S, kChannels>(channels, out + (y * size + x) * kChannels, kParts);
    }
    total += static_cast<double>(S::sum(sum));
  }
  return total;
}

template <class S, class Real>
double read_in_turns(const PatchLossProblem& p, const void* place, Real* out) {
  return with_pixels<Real>(p.pixel_type, place, [&](const auto* first, const auto& convert) {
    return read_in_turns<S, Real>(p, first, out, convert);
  });
}

}  // namespace reconstruction
}  // namespace FASTSSL_ISA
}  // namespace fastssl
