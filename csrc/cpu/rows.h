// Rows of logits in chunks that stay in the first-level cache while they are read more than once.
#pragma once

#include "convert.h"

namespace fastssl {
namespace FASTSSL_ISA {
constexpr std::int64_t kChunk = 2048;

FASTSSL_INLINE bool is_native(DType dtype, const float*) { return dtype == DType::kFloat32; }
FASTSSL_INLINE bool is_native(DType dtype, const double*) { return dtype == DType::kFloat64; }

// Numbers [begin, begin + count) of a row, count <= kChunk: where they lie, or, in another dtype or when they
// do not fill whole vectors, as a copy in `scratch` [kChunk], filled up with the first of them.
template <class S, class Real>
FASTSSL_INLINE const Real* read_chunk(DType dtype, const void* row, std::int64_t begin, std::int64_t count,
                                      Real* scratch) {
  const char* source = static_cast<const char*>(row) + begin * element_bytes(dtype);
  const std::int64_t beyond = count % S::kLanes;
  if (beyond == 0 && is_native(dtype, scratch)) return reinterpret_cast<const Real*>(source);
  read_row(dtype, source, count, scratch);
  for (std::int64_t i = count; beyond != 0 && i < count - beyond + S::kLanes; ++i) scratch[i] = scratch[0];
  return scratch;
}

// The same of numbers that are Real.
template <class S, class Real>
FASTSSL_INLINE const Real* read_chunk(const Real* row, std::int64_t begin, std::int64_t count,
                                      Real* scratch) {
  return read_chunk<S>(sizeof(Real) == sizeof(double) ? DType::kFloat64 : DType::kFloat32, row, begin, count,
                       scratch);
}

// The level of the cache, as __builtin_prefetch counts, into which memory is fetched ahead: the first one
// waits for too few lines at a time to keep up with a kernel.
constexpr int kSecondLevel = 2;

// Fetches two vectors of what is read next, from its k-th number on. The processor's own prefetchers start
// anew on every page.
template <class S>
FASTSSL_INLINE void fetch(DType dtype, const void* next, std::int64_t k) {
  constexpr int kLine = 64;
  const std::int64_t bytes = element_bytes(dtype);
  const char* place = static_cast<const char*>(next) + k * bytes;
  __builtin_prefetch(place, 0, kSecondLevel);
  if (2 * S::kLanes * bytes > kLine) __builtin_prefetch(place + kLine, 0, kSecondLevel);
}

// Calls step(k, is_valid) for each vector of a chunk; is_valid: its lanes inside the chunk. Whole vectors are
// passed two at a time to pair(k), which must do what step does with both.
template <class S, class Pair, class Step>
FASTSSL_INLINE void for_vectors(std::int64_t count, const Pair& pair, const Step& step) {
  std::int64_t k = 0;
  for (; k + 2 * S::kLanes <= count; k += 2 * S::kLanes) pair(k);
  for (; k < count; k += S::kLanes) {
    const std::int64_t left = count - k;
    step(k, S::lane_numbers() < S::broadcast_ints(left < S::kLanes ? static_cast<int>(left) : S::kLanes));
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
