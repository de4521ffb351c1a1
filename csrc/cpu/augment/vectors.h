// What the views need of vectors beyond simd.h: bytes to floats, parts of a vector, and the transposition of
// as many vectors as they have lanes.
#pragma once

#include <utility>

#include "cpu/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastssl {
namespace FASTSSL_ISA {
namespace augment {

template <class S>
FASTSSL_INLINE typename S::Vec load(const float* p) {
  return S::load(p);
}

// Intrinsics where the compiler would take the bytes apart one by one.
template <class S>
FASTSSL_INLINE typename S::Vec load(const std::uint8_t* p) {
  typedef std::uint8_t Bytes __attribute__((vector_size(S::kLanes)));
  Bytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX512F__)
  const __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, reinterpret_cast<__m128i>(bytes));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(reinterpret_cast<long long>(bytes)));
#elif defined(__SSE2__)
  const __m128i narrow = _mm_cvtsi32_si128(reinterpret_cast<int>(bytes)), zero = _mm_setzero_si128();
  const __m128i wide = _mm_unpacklo_epi16(_mm_unpacklo_epi8(narrow, zero), zero);
#else
  const auto wide = __builtin_convertvector(bytes, typename S::Ints);
#endif
  return __builtin_convertvector(reinterpret_cast<typename S::Ints>(wide), typename S::Vec);
}

// The first `count` lanes, 0 < count <= kLanes; zero in the others.
template <class S, class T>
FASTSSL_INLINE typename S::Vec load_part(const T* p, std::int64_t count) {
  T padded[S::kLanes] = {};
  __builtin_memcpy(padded, p, static_cast<std::size_t>(count) * sizeof(T));
  return load<S>(padded);
}

template <class S>
FASTSSL_INLINE void store_part(float* p, typename S::Vec v, std::int64_t count) {
#if defined(__AVX512F__)
  if constexpr (S::kLanes == 16) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
    return;
  }
#endif
  __builtin_memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(float));
}

// Calls body(first) for vectors that cover [0, count), count >= kLanes, and nothing else: the last one is
// moved back.
template <class S, class Body>
FASTSSL_INLINE void for_covering(std::int64_t count, const Body& body) {
  for (std::int64_t i = 0; i + S::kLanes <= count; i += S::kLanes) body(i);
  if (count % S::kLanes != 0) body(count - S::kLanes);
}

template <int n>
struct Count {};

// Calls body(Count<n>, first) for groups of n vectors of [0, count), count a multiple of kLanes: as many as
// are needed to hide the latency of their sums.
template <class S, class Body>
FASTSSL_INLINE void for_groups(int count, const Body& body) {
  constexpr int kLanes = S::kLanes;
  int first = 0;
  for (; first + 8 * kLanes <= count; first += 8 * kLanes) body(Count<8>{}, first);
  switch ((count - first) / kLanes) {
    case 7:
      return body(Count<7>{}, first);
    case 6:
      return body(Count<6>{}, first);
    case 5:
      return body(Count<5>{}, first);
    case 4:
      return body(Count<4>{}, first);
    case 3:
      return body(Count<3>{}, first);
    case 2:
      return body(Count<2>{}, first);
    case 1:
      return body(Count<1>{}, first);
    default:
      return;
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

// One stage of the transposition: lanes whose number has the bit `kBit` change places with the partner's that
// have it not.
template <class S, int kBit, int... lane>
FASTSSL_INLINE void exchange(typename S::Vec& a, typename S::Vec& b, std::integer_sequence<int, lane...>) {
  using V = typename S::Vec;
  using I = typename S::Ints;
  const V x = a, y = b;
  a = select_lanes<V, I, ((lane & kBit) ? S::kLanes + lane - kBit : lane)...>(x, y);
  b = select_lanes<V, I, ((lane & kBit) ? S::kLanes + lane : lane + kBit)...>(x, y);
}

template <class S, int kBit = S::kLanes / 2>
FASTSSL_INLINE void transpose(typename S::Vec* rows) {
  FASTSSL_UNROLL
  for (int i = 0; i < S::kLanes; ++i) {
    if ((i & kBit) == 0)
      exchange<S, kBit>(rows[i], rows[i + kBit], std::make_integer_sequence<int, S::kLanes>{});
  }
  if constexpr (kBit > 1) transpose<S, kBit / 2>(rows);
}

}  // namespace augment
}  // namespace FASTSSL_ISA
}  // namespace fastssl
