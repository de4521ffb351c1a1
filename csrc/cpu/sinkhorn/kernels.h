// The entry points of one instruction set. Each sinkhorn_<isa>.cpp includes this with its own FASTSSL_ISA and
// the width of its vectors. Everything stands in fastssl::<isa>::sinkhorn, or the linker would merge it with
// what another family calls the same.
//
// Sums are carried along with the largest exponent so far, in base 2:
//   (m, s) and a new exponent t:  t <= m: s + 2^(t - m);  t > m: s 2^(m - t) + 1.
// Either way there is one exponential, of -|t - m|.
#pragma once

#include "cpu/launch.h"
#include "cpu/rows.h"
#include "sinkhorn.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace sinkhorn {

template <class S, class Real>
class Kernels {
 public:
  using Vec = typename S::Vec;
  using Ints = typename S::Ints;

  Kernels(const LogSumProblem& p, int threads, Arena& arena)
      : p_(p), factor_(static_cast<Real>(p.scale * kLog2e)), buffers_(arena.take<Buffers>(threads)) {}

  void run(Team& team, Real* log_sums) const {
    Buffers& buffers = buffers_[team.thread()];
    if (p_.over_columns) {
      team.for_each(p_.rows, [&](std::int64_t r) { log_sums[r] = sum_row(r, buffers); });
    } else {
      team.for_each(ceil_div(p_.cols, kStrip), [&](std::int64_t i) {
        const std::int64_t left = p_.cols - i * kStrip;
        sum_columns(i * kStrip, left < kStrip ? left : kStrip, log_sums + i * kStrip, buffers);
      });
    }
  }

  static std::int64_t tasks(const LogSumProblem& p) {
    return p.over_columns ? p.rows : ceil_div(p.cols, kStrip);
  }

 private:
  // Columns that are summed together: their sums stay in the first-level cache while all rows pass.
  static constexpr std::int64_t kStrip = 1024;
  static_assert(kStrip <= kChunk, "strips are read as chunks");

  struct Buffers {
    Real logits[kChunk], potential[kChunk], largest[kStrip], sum[kStrip];
  };

  const char* row(std::int64_t r) const {
    return static_cast<const char*>(p_.logits) + r * p_.stride * element_bytes(p_.dtype);
  }

  static FASTSSL_INLINE Real lowest() { return -static_cast<Real>(__builtin_inf()); }

  // Takes an exponent into (largest, sum).
  static FASTSSL_INLINE void take(Vec t, Vec& largest, Vec& sum) {
    const Vec difference = t - largest;
    const Vec e = S::exp2(difference > 0 ? -difference : difference);  // 2^-|t - largest|
    const Vec added = sum + e, rescaled = sum * e + 1;
    // Minus infinity less minus infinity is NaN: nothing to take. A NaN exponent passes.
    const Ints nothing = t == lowest();
    sum = nothing ? sum : difference > 0 ? rescaled : added;
    largest = difference > 0 ? t : largest;
  }

  // Lanes become one sum; a lane of NaN makes it NaN.
  static Real finish(Vec largest, Vec sum) {
    const Real top = S::largest(largest);
    const Real shift = top == lowest() ? 0 : top;
    const Vec scaled = largest == lowest() ? sum : sum * S::exp2(largest - shift);
    const double total = static_cast<double>(S::sum(scaled));
    return static_cast<Real>(kLn2 * (static_cast<double>(shift) + __builtin_log2(total)));
  }

  Real sum_row(std::int64_t r, Buffers& buffers) const {
    const Real* potential = static_cast<const Real*>(p_.potential);
    Vec largest0 = S::broadcast(lowest()), largest1 = largest0, sum0{}, sum1{};
    for (std::int64_t begin = 0; begin < p_.cols; begin += kChunk) {
      const std::int64_t left = p_.cols - begin, count = left < kChunk ? left : kChunk;
      const Real* x = read_chunk<S>(p_.dtype, row(r), begin, count, buffers.logits);
      const char* next = row(r) + (begin + kChunk) * element_bytes(p_.dtype);  // maybe in the next row
      const Real* v = nullptr;
      if (potential != nullptr) v = read_chunk<S>(potential, begin, count, buffers.potential);
      for_vectors<S>(
          count,
          [&](std::int64_t k) {
            fetch<S>(p_.dtype, next, k);
            take(exponent(x, v, k), largest0, sum0);
            take(exponent(x, v, k + S::kLanes), largest1, sum1);
          },
          [&](std::int64_t k, Ints is_valid) {
            take(is_valid ? exponent(x, v, k) : S::broadcast(lowest()), largest0, sum0);
          });
    }
    merge(largest1, sum1, largest0, sum0);
    return finish(largest0, sum0);
  }

  FASTSSL_INLINE Vec exponent(const Real* x, const Real* v, std::int64_t k) const {
    const Vec t = S::load(x + k) * factor_;
    return v == nullptr ? t : t - S::load(v + k) * static_cast<Real>(kLog2e);
  }

  // Adds one pair to another, lane by lane.
  static FASTSSL_INLINE void merge(Vec from_largest, Vec from_sum, Vec& largest, Vec& sum) {
    const Vec top = S::max(from_largest, largest);
    const Ints empty = top == lowest();
    const Vec shift = empty ? Vec{} : top;
    const Vec of_from = from_largest == lowest() ? from_sum : from_sum * S::exp2(from_largest - shift);
    const Vec of_to = largest == lowest() ? sum : sum * S::exp2(largest - shift);
    sum = of_from + of_to;
    largest = top;
  }

  void sum_columns(std::int64_t begin, std::int64_t count, Real* log_sums, Buffers& buffers) const {
    for (std::int64_t k = 0; k < kStrip; ++k) {
      buffers.largest[k] = lowest();
      buffers.sum[k] = 0;
    }
    for (std::int64_t r = 0; r < p_.rows; ++r) {
      const Real* x = read_chunk<S>(p_.dtype, row(r), begin, count, buffers.logits);
      const Real potential =
          p_.potential == nullptr ? 0 : static_cast<const Real*>(p_.potential)[r] * static_cast<Real>(kLog2e);
      const char* next = row(r + 1 < p_.rows ? r + 1 : r) + begin * element_bytes(p_.dtype);
      const auto add = [&](std::int64_t k) {
        Vec largest = S::load(buffers.largest + k), sum = S::load(buffers.sum + k);
        take(S::load(x + k) * factor_ - potential, largest, sum);
        S::store(buffers.largest + k, largest);
        S::store(buffers.sum + k, sum);
      };
      for_vectors<S>(
          count,
          [&](std::int64_t k) {
            fetch<S>(p_.dtype, next, k);
            add(k);
            add(k + S::kLanes);
          },
          [&](std::int64_t k, Ints) { add(k); });
    }
    for (std::int64_t k = 0; k < count; ++k) {
      const double largest = static_cast<double>(buffers.largest[k]);
      const double shift = largest == -__builtin_inf() ? 0 : largest;
      log_sums[k] = static_cast<Real>(kLn2 * (shift + __builtin_log2(static_cast<double>(buffers.sum[k]))));
    }
  }

  const LogSumProblem& p_;
  Real factor_;
  Buffers* buffers_;  // [threads]
};

template <class S, class Real>
void run(const LogSumProblem& p, void* log_sums) {
  constexpr double kPerLogit = 8;  // an exponential costs about as much as so many multiply-adds
  const double work = kPerLogit * static_cast<double>(p.rows) * static_cast<double>(p.cols);
  const std::int64_t tasks = Kernels<S, Real>::tasks(p);
  const int threads = threads_for(tasks < p.threads ? tasks : p.threads, work);
  launch(
      threads, [&](Arena& arena) { return Kernels<S, Real>(p, threads, arena); },
      [&](const Kernels<S, Real>& kernels, Team& team) { kernels.run(team, static_cast<Real*>(log_sums)); });
}

template <int kVectorBytes>
LogSumKernels make_kernels() {
  return {run<Simd<float, kVectorBytes>, float>, run<Simd<double, kVectorBytes>, double>};
}

}  // namespace sinkhorn
}  // namespace FASTSSL_ISA
}  // namespace fastssl
