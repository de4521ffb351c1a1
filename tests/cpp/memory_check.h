// What the memory checks of all families share: arrays of exactly the right length, and what came back.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/dtype.h"

namespace fastssl {

const double kNaN = std::numeric_limits<double>::quiet_NaN();

inline double uniform() { return std::rand() / (RAND_MAX + 1.0) - 0.5; }

inline std::size_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// [rows, dim] with `stride`, nothing after the last element. Half precision: the numbers +-1 and +-2.
inline std::vector<char> matrix(DType dtype, std::int64_t rows, std::int64_t dim, std::int64_t stride) {
  std::vector<char> bytes(((rows - 1) * stride + dim) * size_of(dtype));
  for (std::size_t at = 0; at < bytes.size(); at += size_of(dtype)) {
    const double x = uniform();
    const float narrow = static_cast<float>(x);
    const std::uint16_t one = dtype == DType::kBFloat16 ? 0x3f80 : 0x3c00;
    const std::uint16_t half =
        static_cast<std::uint16_t>((x < 0 ? 0x8000 : 0) | (std::fabs(x) < 0.25 ? one : 0x4000));
    const void* from = dtype == DType::kFloat64   ? static_cast<const void*>(&x)
                       : dtype == DType::kFloat32 ? static_cast<const void*>(&narrow)
                                                  : &half;
    std::memcpy(bytes.data() + at, from, size_of(dtype));
  }
  return bytes;
}

// Real numbers: double for float64, else float.
inline std::vector<char> vector_of(DType dtype, std::int64_t count, double value) {
  const std::size_t width = dtype == DType::kFloat64 ? 8 : 4;
  std::vector<char> bytes(count * width);
  for (std::int64_t i = 0; i < count; ++i) {
    const float narrow = static_cast<float>(value);
    std::memcpy(bytes.data() + i * width, width == 8 ? static_cast<const void*>(&value) : &narrow, width);
  }
  return bytes;
}

inline bool all_finite(const std::vector<char>& bytes, bool wide) {
  for (std::size_t at = 0; at < bytes.size(); at += wide ? 8 : 4) {
    double x = 0;
    float narrow = 0;
    std::memcpy(wide ? static_cast<void*>(&x) : &narrow, bytes.data() + at, wide ? 8 : 4);
    if (!std::isfinite(wide ? x : narrow)) return false;
  }
  return true;
}

}  // namespace fastssl
