// Vectors of one instruction set, written with the compiler's vector extensions so that one template serves
// SSE2, AVX2, AVX-512 and NEON. Included by the translation unit of each instruction set with FASTSSL_ISA
// naming its namespace: the namespaces keep the linker from merging, say, AVX-512 code into what a baseline
// machine runs. For the same reason nothing below that line calls templates or inline functions of the
// standard library.
#pragma once

#ifndef FASTSSL_ISA
#error "define FASTSSL_ISA before including this header"
#endif

#include <cstdint>

#define FASTSSL_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define FASTSSL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FASTSSL_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fastssl {
namespace FASTSSL_ISA {

// Exponents are in base 2. The second part of log2(e) is what double rounds off.
constexpr double kLog2e = 1.4426950408889634074, kLog2eRest = 2.0355273740931033e-17;
constexpr double kLn2 = 0.69314718055994530942;

// Constants of 2^t = p(f) 2^r with r = round(t), f = t - r in [-1/2, 1/2]. p(f) = 1 + f q(f), q a Chebyshev
// fit of (2^f - 1) / f. Adding kMagic rounds to an integer and leaves r + bias in the low bits, the exponent
// of 2^r.
template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  static constexpr int kMantissa = 23, kDegree = 6;
  static constexpr float kMagic = 12582912.0f + 127.0f, kLowest = -126.0f, kHighest = 128.0f;
  // largest error of the whole function: 0.82 ulp
  static constexpr float kCoefficients[kDegree + 1] = {
      1.0f, 0.693147188f, 0.2402265076f, 0.05550357114f, 0.009618082557f, 0.001339086336f, 0.0001545316295f};
};

template <>
struct Exp2<double> {
  static constexpr int kMantissa = 52, kDegree = 11;
  static constexpr double kMagic = 6755399441055744.0 + 1023.0, kLowest = -1022.0, kHighest = 1024.0;
  static constexpr double kCoefficients[kDegree + 1] = {1.0,
                                                        0.6931471805599453094,
                                                        0.2402265069591009822,
                                                        0.05550410866482159434,
                                                        0.009618129107606888527,
                                                        0.001333355814641693531,
                                                        0.0001540353044173605015,
                                                        0.00001525273382983611839,
                                                        1.321544258792168965e-6,
                                                        1.017806244584577352e-7,
                                                        7.0725859492692237e-9,
                                                        4.454960598186518394e-10};
};

// The same of float for numbers that are rounded to bfloat16: relative error below 3e-6.
struct Exp2ForBfloat16 : Exp2<float> {
  static constexpr int kDegree = 4;
  static constexpr float kCoefficients[kDegree + 1] = {0.9999992614f, 0.6931218147f, 0.2402474482f,
                                                       0.05591786031f, 0.009570102015f};
};

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using Signed = std::int32_t;
  using Unsigned = std::uint32_t;
};
template <>
struct IntOf<double> {
  using Signed = std::int64_t;
  using Unsigned = std::uint64_t;
};

// A vector of kBytes / sizeof(T) lanes of T, and what the kernels do with it. C: the constants of exp2.
template <class T, int kBytes, class C = Exp2<T>>
struct Simd {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
  using Signed = typename IntOf<T>::Signed;
  typedef T Vec __attribute__((vector_size(kBytes)));
  typedef Signed Ints __attribute__((vector_size(kBytes)));
  typedef typename IntOf<T>::Unsigned Bits __attribute__((vector_size(kBytes)));

  static FASTSSL_INLINE Vec load(const T* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static FASTSSL_INLINE void store(T* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

  // Stores past the caches, for memory that is not read soon. p must be aligned to the vector, and
  // finish_streaming() must follow before another thread reads.
  static FASTSSL_INLINE void stream(T* p, Vec v) {
#if defined(__clang__)
    __builtin_nontemporal_store(v, reinterpret_cast<Vec*>(p));
#else
    using Floats = typename Simd<float, kBytes>::Vec;
    [[maybe_unused]] const Floats floats = reinterpret_cast<Floats>(v);
    [[maybe_unused]] float* out = reinterpret_cast<float*>(p);
#if defined(__AVX512F__)
    if constexpr (kBytes == 64) return __builtin_ia32_movntps512(out, floats);
#endif
#if defined(__AVX__)
    if constexpr (kBytes == 32) return __builtin_ia32_movntps256(out, floats);
#endif
#if defined(__SSE__)
    if constexpr (kBytes == 16) return __builtin_ia32_movntps(out, floats);
#endif
    store(p, v);
#endif
  }
  static FASTSSL_INLINE void finish_streaming() {
#if defined(__SSE__)
    __builtin_ia32_sfence();
#endif
  }

  static FASTSSL_INLINE Ints load_ints(const Signed* p) {
    Ints v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }

  static FASTSSL_INLINE Vec broadcast(T x) { return x - Vec{}; }
  static FASTSSL_INLINE Ints broadcast_ints(Signed x) { return x - Ints{}; }

  // 0, 1, 2, ...
  static FASTSSL_INLINE Ints lane_numbers() {
    Ints v{};
    for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane;
    return v;
  }

  // The larger of a and b; b where a is NaN.
  static FASTSSL_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

  // The largest lane; some lane's or NaN where a lane is NaN.
  static FASTSSL_INLINE T largest(Vec v) {
    if constexpr (kLanes == 2) {
      return v[0] > v[1] ? v[0] : v[1];
    } else {
      using Half = Simd<T, kBytes / 2>;
      typename Half::Vec halves[2];
      __builtin_memcpy(halves, &v, sizeof v);
      return Half::largest(Half::max(halves[0], halves[1]));
    }
  }

  // The upper half is added to the lower until one lane is left.
  static FASTSSL_INLINE T sum(Vec v) {
    if constexpr (kLanes == 2) {
      return v[0] + v[1];
    } else {
      using Half = Simd<T, kBytes / 2>;
      typename Half::Vec halves[2];
      __builtin_memcpy(halves, &v, sizeof v);
      return Half::sum(halves[0] + halves[1]);
    }
  }

  // 2^t for t <= kHighest; 0 below kLowest (no subnormal results); NaN stays NaN, which is why 2^r is
  // multiplied on and not added to the exponent bits, and why the comparison is written so that NaN falls
  // through it.
  static FASTSSL_INLINE Vec exp2(Vec t) {
    const Vec shifted = t + C::kMagic;
    const Vec f = t - (shifted - C::kMagic);
    const Vec power = reinterpret_cast<Vec>(reinterpret_cast<Bits>(shifted) << C::kMantissa);
    Vec p = broadcast(C::kCoefficients[C::kDegree]);
    FASTSSL_UNROLL
    for (int k = C::kDegree - 1; k >= 0; --k) p = p * f + C::kCoefficients[k];
    return t < C::kLowest ? Vec{} : p * power;
  }

  // 2^t for any t; infinite from 2^(kHighest - 1/2).
  static FASTSSL_INLINE Vec exp2_any(Vec t) {
    const Vec highest = broadcast(C::kHighest);
    return exp2(t > highest ? highest : t);
  }

  // log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)), a series in at most 1/9. NaN stays NaN.
  static FASTSSL_INLINE Vec log1p_of_unit(Vec u) {
    constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
    const Vec ratio = u / (2 + u), square = ratio * ratio;
    Vec series = broadcast(static_cast<T>(1.0 / (2 * kTerms - 1)));
    FASTSSL_UNROLL
    for (int k = kTerms - 2; k >= 0; --k) series = series * square + static_cast<T>(1.0 / (2 * k + 1));
    return 2 * ratio * series;
  }
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
