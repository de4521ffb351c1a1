// Rows of tokens, strip by strip: read in any dtype, added up as Real, written past the caches.
#pragma once

#include "cpu/launch.h"
#include "cpu/rows.h"
#include "masking.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace masking {

constexpr std::int64_t kCached = std::int64_t{4}
                                 << 20;  // smaller outputs are still in a cache when they are read

// What one thread writes with. Strips have at most kChunk numbers.
template <class S, class Real>
class RowWriter {
 public:
  using Vec = typename S::Vec;

  static constexpr DType kNative = sizeof(Real) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;

  struct Scratch {
    Real numbers[kChunk], sum[kChunk];
    alignas(kCacheLine) char bytes[kChunk * sizeof(Real)];
  };

  RowWriter(bool streams, Scratch& scratch) : streams_(streams), scratch_(scratch) {}

  // Numbers [begin, begin + count) of a row as Real: where they lie, or a copy, overwritten by the next.
  FASTSSL_INLINE const Real* read(DType dtype, const void* row, std::int64_t begin,
                                  std::int64_t count) const {
    const char* source = static_cast<const char*>(row) + begin * element_bytes(dtype);
    if (dtype == kNative) return reinterpret_cast<const Real*>(source);
    read_row(dtype, source, count, scratch_.numbers);
    return scratch_.numbers;
  }

  // out[begin + i] = value(i, n) for all vectors of i: n numbers from i on, n < kLanes in the last one alone.
  // Of `next` as many bytes are fetched ahead, where that is not null.
  template <class Value>
  FASTSSL_INLINE void write(DType dtype, void* out, std::int64_t begin, std::int64_t count, const void* next,
                            const Value& value) const {
    char* place = static_cast<char*>(out) + begin * element_bytes(dtype);
    const char* ahead =
        next == nullptr ? nullptr : static_cast<const char*>(next) + begin * element_bytes(dtype);
    if (dtype == kNative) {
      put(reinterpret_cast<Real*>(place), count, streams_, ahead, value);
    } else {
      put(scratch_.sum, count, false, ahead, value);
      write_row(dtype, scratch_.sum, count, scratch_.bytes);
      copy_bytes(place, scratch_.bytes, count * element_bytes(dtype), nullptr);
    }
  }

  // The same of numbers that need no arithmetic.
  FASTSSL_INLINE void copy_bytes(char* out, const char* in, std::int64_t bytes, const char* next) const {
    using F = Simd<float, sizeof(Vec)>;
    std::int64_t i = 0;
    constexpr std::int64_t kVec = sizeof(Vec);
    if (streams_ && reinterpret_cast<std::uintptr_t>(out) % kVec == 0) {
      for (; i + kVec <= bytes; i += kVec) {
        if (next != nullptr) __builtin_prefetch(next + i, 0, kSecondLevel);
        typename F::Vec v;
        __builtin_memcpy(&v, in + i, sizeof v);
        F::stream(reinterpret_cast<float*>(out + i), v);
      }
    }
    __builtin_memcpy(out + i, in + i, static_cast<std::size_t>(bytes - i));
  }

  void fill(DType dtype, void* out, std::int64_t begin, std::int64_t count, Real x) const {
    write(dtype, out, begin, count, nullptr, [&](std::int64_t, std::int64_t) { return S::broadcast(x); });
  }

  static FASTSSL_INLINE Vec load(const Real* p, std::int64_t count) {
    if (count == S::kLanes) return S::load(p);
    Vec v{};
    __builtin_memcpy(&v, p, static_cast<std::size_t>(count) * sizeof(Real));
    return v;
  }

  static FASTSSL_INLINE void store(Real* p, Vec v, std::int64_t count) {
    if (count == S::kLanes) return S::store(p, v);
    __builtin_memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(Real));
  }

  // step(i, n) for all vectors.
  template <class Step>
  static FASTSSL_INLINE void for_all(std::int64_t count, const Step& step) {
    std::int64_t i = 0;
    for (; i + S::kLanes <= count; i += S::kLanes) step(i, S::kLanes);
    if (i < count) step(i, count - i);
  }

  static void add(Real* sum, const Real* x, std::int64_t count) {
    for_all(count,
            [&](std::int64_t i, std::int64_t n) { store(sum + i, load(sum + i, n) + load(x + i, n), n); });
  }

  static void clear(Real* x, std::int64_t count) {
    __builtin_memset(x, 0, static_cast<std::size_t>(count) * sizeof(Real));
  }

 private:
  template <class Value>
  static FASTSSL_INLINE void put(Real* out, std::int64_t count, bool streams, const char* ahead,
                                 const Value& value) {
    std::int64_t i = 0;
    if (streams && reinterpret_cast<std::uintptr_t>(out) % sizeof(Vec) == 0) {
      for (; i + S::kLanes <= count; i += S::kLanes) {
        if (ahead != nullptr)
          __builtin_prefetch(ahead + i * static_cast<std::int64_t>(sizeof(Real)), 0, kSecondLevel);
        S::stream(out + i, value(i, S::kLanes));
      }
    }
    for (; i + S::kLanes <= count; i += S::kLanes) S::store(out + i, value(i, S::kLanes));
    if (i < count) store(out + i, value(i, count - i), count - i);
  }

  bool streams_;
  Scratch& scratch_;
};

// Which rows go to the same target: first[t] is the first of them, -1 where there is none; next[s] is the one
// after s, -1 behind the last.
struct Chains {
  std::int32_t *first, *next;

  static void link(const std::int64_t* ids, std::int64_t count, std::int64_t targets, Chains chains) {
    for (std::int64_t t = 0; t < targets; ++t) chains.first[t] = -1;
    for (std::int64_t s = count - 1; s >= 0; --s) {
      chains.next[s] = -1;
      if (ids[s] < 0 || ids[s] >= targets) continue;
      chains.next[s] = chains.first[ids[s]];
      chains.first[ids[s]] = static_cast<std::int32_t>(s);
    }
  }
};

FASTSSL_INLINE const char* row_of(const TokenRows& x, std::int64_t b, std::int64_t r) {
  return static_cast<const char*>(x.data) + (b * x.batch_stride + r * x.row_stride) * element_bytes(x.dtype);
}

FASTSSL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

}  // namespace masking
}  // namespace FASTSSL_ISA
}  // namespace fastssl
