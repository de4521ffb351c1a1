// Gaussian noise of one pixel: Box and Muller's transform of one block of Philox for four channels.
#pragma once

#include "augment/random.h"
#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {

struct Normals {
  float n0, n1, n2, n3;
};

// -ln of ((word >> 8) + 1/2) 2^-24. Half steps above 1/2 have more bits than a float, their distance from 1
// has not.
FASTSSL_HD float minus_log(std::uint32_t word) {
  constexpr float kUnit = 1.0f / 16777216.0f;
  const std::uint32_t m = word >> 8;
  if (m < 0x800000u) return -log_of((static_cast<float>(m) + 0.5f) * kUnit);
  return -log1p_of((static_cast<float>(0x1000000u - m) - 0.5f) * -kUnit);
}

// The two normals that two words give.
FASTSSL_HD void box_muller(std::uint32_t word0, std::uint32_t word1, float* first, float* second) {
  const float radius = sqrt_of(2.0f * minus_log(word0));
  // The angle in turns is (m + 1/2) 2^-24, taken from the nearest quarter turn so that a float holds it.
  const std::uint32_t m = word1 >> 8, quarter = (m + 0x200000u) >> 22;
  const float part = static_cast<float>(static_cast<std::int32_t>(m - (quarter << 22))) + 0.5f;
  const float angle = part * (2.0f / 16777216.0f);  // in half turns
  const float c = radius * cos_half_turns(angle), s = radius * sin_half_turns(angle);
  const bool odd = quarter & 1;
  const float x = odd ? s : c, y = odd ? c : s;  // cos(q pi/2 + angle), up to the sign
  *first = ((quarter + 1) & 2) ? -x : x;
  *second = (quarter & 2) ? -y : y;
}

// The lowest 32 bits of a whole number that stands in a record; 0 for NaN and infinities. Floats above 2^56
// have none.
FASTSSL_HD std::uint32_t key_word(float x) {
  if (!(x < 9e18f && x > -9e18f)) return 0u;
  return static_cast<std::uint32_t>(static_cast<std::int64_t>(x));
}

// Standard normals of pixel `position` (row-major in the view) for the channels 4 group, ..., 4 group + 3.
FASTSSL_HD Normals normals(std::uint32_t position, std::uint32_t group, std::uint32_t key0,
                           std::uint32_t key1) {
  const Words w = philox({position, group, 0u, 0u}, key0, key1);
  Normals n;
  box_muller(w.w0, w.w1, &n.n0, &n.n1);
  box_muller(w.w2, w.w3, &n.n2, &n.n3);
  return n;
}

FASTSSL_HD float of_channel(const Normals& n, int channel) {
  const int i = channel & 3;
  return i < 2 ? (i == 0 ? n.n0 : n.n1) : (i == 2 ? n.n2 : n.n3);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
