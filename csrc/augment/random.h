// Random numbers as a function of a key and a counter: Philox4x32-10 (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011), as fastssl/augment/random.py has it.
#pragma once

#include "augment/portable.h"

namespace fastssl {
namespace FASTSSL_ISA {

struct Words {
  std::uint32_t w0, w1, w2, w3;
};

FASTSSL_HD Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) {
  Words c = counter;
  FASTSSL_HD_UNROLL
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c.w0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c.w2;
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c.w1 ^ key0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c.w3 ^ key1, static_cast<std::uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// Uniform in [0, 1): a multiple of 2^-24.
FASTSSL_HD double uniform(std::uint32_t word) { return (word >> 8) * (1.0 / 16777216.0); }

}  // namespace FASTSSL_ISA
}  // namespace fastssl
