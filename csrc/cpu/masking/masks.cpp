// Masks by one sort per image. Integers only: one translation unit serves every instruction set.
#define FASTSSL_ISA baseline
#include <stdexcept>

#include "augment/random.h"
#include "cpu/convert.h"
#include "cpu/launch.h"
#include "masking.h"

namespace fastssl {
namespace {

using baseline::Arena;

constexpr std::uint32_t kNoiseBlock = 1u << 30;  // fastssl/ops/masking/reference.py: NOISE_BLOCK
constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;

// Unsigned integers in the order of the numbers; both zeros are equal, and NaN is the largest.
template <class Key, class Real>
Key ordered(Real x) {
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  if (x != x) return ~Key{0};
  const Key bits = baseline::bits_as<Key>(x + Real{0});
  return bits & kSign ? ~bits : bits | kSign;
}

// Sorts places [0, length) by their keys, equal ones in order: radix, the least digit first. A digit that all
// keys share moves nothing.
template <class Key>
class Sorter {
 public:
  Sorter(std::int64_t length, Arena& arena)
      : length_(length),
        keys_(arena.take<Key>(length)),
        other_keys_(arena.take<Key>(length)),
        places_(arena.take<std::uint32_t>(length)),
        other_places_(arena.take<std::uint32_t>(length)),
        counts_(arena.take<std::uint32_t>(kDigits * sizeof(Key))) {}

  Key* keys() const { return keys_; }

  // The places in order; valid until the next call.
  const std::uint32_t* sort() const {
    Key *from = keys_, *to = other_keys_;
    std::uint32_t *from_places = places_, *to_places = other_places_;
    __builtin_memset(counts_, 0, kDigits * sizeof(Key) * sizeof *counts_);
    for (std::int64_t i = 0; i < length_; ++i) {
      from_places[i] = static_cast<std::uint32_t>(i);
      for (std::size_t digit = 0; digit < sizeof(Key); ++digit)
        ++counts_[digit * kDigits + of(from[i], digit)];
    }
    for (std::size_t digit = 0; digit < sizeof(Key); ++digit) {
      std::uint32_t *counts = counts_ + digit * kDigits, before = 0;
      if (counts[of(from[0], digit)] == length_) continue;
      for (int value = 0; value < kDigits; ++value) {
        const std::uint32_t count = counts[value];
        counts[value] = before;
        before += count;
      }
      for (std::int64_t i = 0; i < length_; ++i) {
        const std::uint32_t place = counts[of(from[i], digit)]++;
        to[place] = from[i];
        to_places[place] = from_places[i];
      }
      swap(from, to);
      swap(from_places, to_places);
    }
    return from_places;
  }

 private:
  static int of(Key key, std::size_t digit) {
    return static_cast<int>(key >> (digit * kDigitBits) & (kDigits - 1));
  }

  template <class T>
  static void swap(T*& a, T*& b) {
    T* const c = a;
    a = b;
    b = c;
  }

  std::int64_t length_;
  Key *keys_, *other_keys_;
  std::uint32_t *places_, *other_places_, *counts_;
};

// Keys of one image.
void read_keys(const MaskProblem& p, std::int64_t b, std::uint32_t* keys) {
  if (p.noise == nullptr) {
    const std::uint32_t key0 = static_cast<std::uint32_t>(p.seed),
                        key1 = static_cast<std::uint32_t>(p.seed >> 32);
    for (std::int64_t i = 0; i < p.length; i += 4) {
      const baseline::Words w = baseline::philox({kNoiseBlock + static_cast<std::uint32_t>(i / 4), p.view,
                                                  static_cast<std::uint32_t>(p.index[b]), p.epoch},
                                                 key0, key1);
      const std::uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
      for (std::int64_t j = i; j < i + 4 && j < p.length; ++j) keys[j] = words[j - i];
    }
    return;
  }
  for (std::int64_t i = 0; i < p.length; ++i) {
    const std::int64_t at = b * p.length + i;
    const auto* halves = static_cast<const std::uint16_t*>(p.noise);
    const float x = p.dtype == DType::kFloat32    ? static_cast<const float*>(p.noise)[at]
                    : p.dtype == DType::kBFloat16 ? baseline::from_bfloat16(halves[at])
                                                  : baseline::from_float16(halves[at]);
    keys[i] = ordered<std::uint32_t>(x);
  }
}

void read_keys(const MaskProblem& p, std::int64_t b, std::uint64_t* keys) {
  const double* noise = static_cast<const double*>(p.noise) + b * p.length;
  for (std::int64_t i = 0; i < p.length; ++i) keys[i] = ordered<std::uint64_t>(noise[i]);
}

template <class Key>
class Masker {
 public:
  Masker(const MaskProblem& p, const MaskOutputs& out, int threads, Arena& arena)
      : p_(p), out_(out), sorters_(arena.take<Sorter<Key>>(threads)) {
    for (int i = 0; i < threads; ++i) {
      const Sorter<Key> one(p.length, arena);
      if (sorters_ != nullptr) sorters_[i] = one;
    }
  }

  void run(Team& team) const {
    const Sorter<Key>& sorter = sorters_[team.thread()];
    team.for_each(p_.batch, [&](std::int64_t b) {
      read_keys(p_, b, sorter.keys());
      const std::uint32_t* order = sorter.sort();
      const std::int64_t row = b * p_.length, removed = p_.length - p_.keep;
      for (std::int64_t i = 0; i < p_.keep; ++i) out_.kept[b * p_.keep + i] = order[i];
      for (std::int64_t i = 0; i < removed; ++i) out_.masked[b * removed + i] = order[p_.keep + i];
      for (std::int64_t i = 0; i < p_.length; ++i) {
        out_.restore[row + order[i]] = i;
        out_.mask[row + order[i]] = i < p_.keep ? 0.0f : 1.0f;
      }
    });
  }

 private:
  const MaskProblem& p_;
  const MaskOutputs& out_;
  Sorter<Key>* sorters_;  // [threads]
};

template <class Key>
void run(const MaskProblem& p, const MaskOutputs& out) {
  constexpr double kPerPatch = 32;  // multiply-adds for which drawing and sorting a patch stands
  const double work = kPerPatch * static_cast<double>(p.batch) * static_cast<double>(p.length);
  const int threads = threads_for(p.batch < p.threads ? p.batch : p.threads, work);
  baseline::launch(
      threads, [&](Arena& arena) { return Masker<Key>(p, out, threads, arena); },
      [](const Masker<Key>& masker, Team& team) { masker.run(team); });
}

}  // namespace

void random_masks(const MaskProblem& p, const MaskOutputs& out) {
  if (p.noise == nullptr && p.index == nullptr)
    throw std::invalid_argument("random_masks: noise and index must not both be null");
  if (p.batch < 1 || p.length < 1 || p.length > std::int64_t{1} << 24)
    throw std::invalid_argument("random_masks: there must be images, of 1 to 2^24 patches");
  if (p.keep < 1 || p.keep > p.length)
    throw std::invalid_argument("random_masks: keep must be from 1 to the number of patches");
  if (out.kept == nullptr || out.restore == nullptr || out.mask == nullptr ||
      (out.masked == nullptr && p.keep < p.length))
    throw std::invalid_argument("random_masks: outputs must not be null");
  if (p.noise != nullptr && p.dtype == DType::kFloat64) {
    run<std::uint64_t>(p, out);
  } else {
    run<std::uint32_t>(p, out);
  }
}

}  // namespace fastssl
