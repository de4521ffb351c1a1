// Rows of the input dtypes to float or double and back. Bit arithmetic that compilers vectorise on every
// target.
#pragma once

#include "dtype.h"
#include "simd.h"

namespace fastssl {
namespace FASTSSL_ISA {

template <class To, class From>
FASTSSL_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

FASTSSL_INLINE float from_bfloat16(std::uint16_t x) {
  return bits_as<float>(static_cast<std::uint32_t>(x) << 16);
}

FASTSSL_INLINE std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded);
}

FASTSSL_INLINE float from_float16(std::uint16_t x) {
  const std::uint32_t magnitude = x & 0x7fff, sign = static_cast<std::uint32_t>(x & 0x8000) << 16;
  // The exponent's bias differs by 112; multiplying by 2^112 also normalises subnormals.
  const std::uint32_t finite = bits_as<std::uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f);
  const std::uint32_t special = (magnitude << 13) | 0x7f800000;
  return bits_as<float>(sign | (magnitude >= 0x7c00 ? special : finite));
}

FASTSSL_INLINE std::uint16_t to_float16(float x) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x), sign = bits & 0x80000000, magnitude = bits ^ sign;
  // Normal results: rebias by -112, round the 13 dropped bits to nearest even; past the largest finite value
  // the carry gives exactly the bits of infinity, and anything larger is cut to it.
  const std::uint32_t carried = magnitude + 0xfff + ((magnitude >> 13) & 1) - (std::uint32_t{112} << 23);
  const std::uint32_t normal = carried >= 0x0f800000 ? 0x7c00 : carried >> 13;
  // Subnormal results: adding 0.5 leaves the value in units of 2^-24 in the low bits, rounded by the
  // addition.
  const std::uint32_t subnormal = bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000;
  const std::uint32_t half = magnitude > 0x7f800000 ? 0x7e00 : magnitude < 0x38800000 ? subnormal : normal;
  return static_cast<std::uint16_t>(half | (sign >> 16));
}

FASTSSL_INLINE std::int64_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline void read_row(DType, const void* source, std::int64_t dim, double* out) {
  __builtin_memcpy(out, source, static_cast<std::size_t>(dim) * sizeof(double));
}

inline void read_row(DType dtype, const void* source, std::int64_t dim, float* out) {
  const auto* halves = static_cast<const std::uint16_t*>(source);
  if (dtype == DType::kFloat32) {
    __builtin_memcpy(out, source, static_cast<std::size_t>(dim) * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (std::int64_t d = 0; d < dim; ++d) out[d] = from_bfloat16(halves[d]);
  } else {
    for (std::int64_t d = 0; d < dim; ++d) out[d] = from_float16(halves[d]);
  }
}

inline void write_row(DType, const double* row, std::int64_t dim, void* out) {
  __builtin_memcpy(out, row, static_cast<std::size_t>(dim) * sizeof(double));
}

inline void write_row(DType dtype, const float* row, std::int64_t dim, void* out) {
  auto* halves = static_cast<std::uint16_t*>(out);
  if (dtype == DType::kFloat32) {
    __builtin_memcpy(out, row, static_cast<std::size_t>(dim) * sizeof(float));
  } else if (dtype == DType::kBFloat16) {
    for (std::int64_t d = 0; d < dim; ++d) halves[d] = to_bfloat16(row[d]);
  } else {
    for (std::int64_t d = 0; d < dim; ++d) halves[d] = to_float16(row[d]);
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
