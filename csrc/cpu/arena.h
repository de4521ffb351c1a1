// Pieces of one allocation, and how they are laid out.
#pragma once

#include <cstddef>

#include "simd.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fastssl {
namespace FASTSSL_ISA {

constexpr int kCacheLine = 64;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// A row's length in elements such that consecutive rows fall into different sets of the L1 cache: an odd
// number of lines.
constexpr std::int64_t spread_stride(std::int64_t elements, std::int64_t element_bytes) {
  return (ceil_div(elements * element_bytes, kCacheLine) | 1) * kCacheLine / element_bytes;
}

// Hands out aligned pieces of one allocation. With a null base it only measures. Under AddressSanitizer a
// poisoned gap follows each piece, so that running from one into the next shows.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T), begin = used_;
    used_ += static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes) + kGap, kCacheLine));
    if (base_ == nullptr) return nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base_ + begin, bytes);
    __asan_poison_memory_region(base_ + begin + bytes, used_ - begin - bytes);
#endif
    return reinterpret_cast<T*>(base_ + begin);
  }
  std::size_t used() const { return used_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::int64_t kGap = 4096;
#else
  static constexpr std::int64_t kGap = 0;
#endif
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
