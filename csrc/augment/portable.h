// What the augmentation's headers need so that nvcc compiles them for GPUs, g++ and clang++ for CPUs, and
// each instruction set's translation unit for itself (csrc/cpu/simd.h says why they have a namespace each and
// why nothing here calls templates or inline functions of the standard library).
#pragma once

#include <cstdint>

#ifndef FASTSSL_ISA
#define FASTSSL_ISA portable
#endif

#if defined(__CUDACC__)
#define FASTSSL_HD __host__ __device__ __forceinline__
#if defined(__CUDA_ARCH__)
#define FASTSSL_HD_UNROLL _Pragma("unroll")
#define FASTSSL_HD_LOOP _Pragma("unroll 1")
#else
#define FASTSSL_HD_UNROLL
#define FASTSSL_HD_LOOP
#endif
#else
#define FASTSSL_HD inline __attribute__((always_inline))
#define FASTSSL_HD_LOOP
#if defined(__clang__)
#define FASTSSL_HD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FASTSSL_HD_UNROLL _Pragma("GCC unroll 16")
#endif
#endif

namespace fastssl {
namespace FASTSSL_ISA {

#if defined(__CUDACC__)
FASTSSL_HD float floor_of(float x) { return ::floorf(x); }
FASTSSL_HD double floor_of(double x) { return ::floor(x); }
FASTSSL_HD float ceil_of(float x) { return ::ceilf(x); }
FASTSSL_HD float rint_of(float x) { return ::rintf(x); }  // ties to even
FASTSSL_HD double rint_of(double x) { return ::rint(x); }
FASTSSL_HD float sqrt_of(float x) { return ::sqrtf(x); }
FASTSSL_HD double sqrt_of(double x) { return ::sqrt(x); }
FASTSSL_HD float exp_of(float x) { return ::expf(x); }
FASTSSL_HD double exp_of(double x) { return ::exp(x); }
FASTSSL_HD float log_of(float x) { return ::logf(x); }
FASTSSL_HD double log_of(double x) { return ::log(x); }
FASTSSL_HD float log1p_of(float x) { return ::log1pf(x); }
// Of an angle in half turns; on a GPU the usual ones need memory for large angles.
FASTSSL_HD float sin_half_turns(float x) { return ::sinpif(x); }
FASTSSL_HD double sin_half_turns(double x) { return ::sinpi(x); }
FASTSSL_HD float cos_half_turns(float x) { return ::cospif(x); }
FASTSSL_HD double cos_half_turns(double x) { return ::cospi(x); }
FASTSSL_HD double remainder_of(double x, double y) { return ::fmod(x, y); }
#else
FASTSSL_HD float floor_of(float x) { return __builtin_floorf(x); }
FASTSSL_HD double floor_of(double x) { return __builtin_floor(x); }
FASTSSL_HD float ceil_of(float x) { return __builtin_ceilf(x); }
FASTSSL_HD float rint_of(float x) { return __builtin_rintf(x); }
FASTSSL_HD double rint_of(double x) { return __builtin_rint(x); }
FASTSSL_HD float sqrt_of(float x) { return __builtin_sqrtf(x); }
FASTSSL_HD double sqrt_of(double x) { return __builtin_sqrt(x); }
FASTSSL_HD float exp_of(float x) { return __builtin_expf(x); }
FASTSSL_HD double exp_of(double x) { return __builtin_exp(x); }
FASTSSL_HD float log_of(float x) { return __builtin_logf(x); }
FASTSSL_HD double log_of(double x) { return __builtin_log(x); }
FASTSSL_HD float log1p_of(float x) { return __builtin_log1pf(x); }
FASTSSL_HD float sin_half_turns(float x) { return __builtin_sinf(x * 3.14159265358979323846f); }
FASTSSL_HD double sin_half_turns(double x) { return __builtin_sin(x * 3.14159265358979323846); }
FASTSSL_HD float cos_half_turns(float x) { return __builtin_cosf(x * 3.14159265358979323846f); }
FASTSSL_HD double cos_half_turns(double x) { return __builtin_cos(x * 3.14159265358979323846); }
FASTSSL_HD double remainder_of(double x, double y) { return __builtin_fmod(x, y); }
#endif

template <class T>
FASTSSL_HD T least(T a, T b) {
  return b < a ? b : a;
}

template <class T>
FASTSSL_HD T most(T a, T b) {
  return a < b ? b : a;
}

// lo <= hi; lo where x is below it. NaN stays NaN.
template <class T>
FASTSSL_HD T within(T x, T lo, T hi) {
  return x < lo ? lo : (hi < x ? hi : x);
}

// a + b c, each operation rounded: what PyTorch computes, where the compiler would rather fuse the two.
FASTSSL_HD double add_product(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, __dmul_rn(b, c));
#else
  return a + b * c;
#endif
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
