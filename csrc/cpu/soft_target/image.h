// One image: the teachers' probabilities into the thread's scratch, then each student against its sum of
// them.
//
// Exponents are in base 2 and relative to a shift per chunk, the largest exponent of the chunks before it: a
// row is read once, and no chunk twice. A chunk that rises far above its shift is done again; one that stays
// far below it does not matter beside the number that gave the shift. What is known only at the end of the
// row, its log-sum, enters as one factor per chunk. While a chunk is computed the next one is fetched: the
// processor's own prefetchers start anew on every page. A term of the loss is formed as m (lse - shift) - p .
// (x - shift), which does not depend on an offset that all logits share.
#pragma once

#include "cpu/arena.h"
#include "cpu/rows.h"
#include "soft_target.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace soft_target {

// A row of probabilities: data[k] times factor[chunk of k], zero from the prototypes up to a whole vector.
template <class Real>
struct Target {
  Real* data;    // [row_stride]
  Real* factor;  // [chunks]
  Real* mass;    // [chunks]: sum of the probabilities
};

// What a thread works in.
template <class Real>
struct Scratch {
  Target<Real>* target;   // [targets]: a teacher each, and one more where a sum of them needs a place
  Real* exponential;      // [row_stride]
  Real *shift, *partial;  // [chunks]
  Real *input, *potential, *output;  // [kChunk]

  Scratch(std::int64_t targets, std::int64_t row_stride, std::int64_t chunks, Arena& arena)
      : target(arena.take<Target<Real>>(targets)) {
    for (std::int64_t i = 0; i < targets; ++i) {
      const Target<Real> row{arena.take<Real>(row_stride), arena.take<Real>(chunks),
                             arena.take<Real>(chunks)};
      if (target != nullptr) target[i] = row;
    }
    exponential = arena.take<Real>(row_stride);
    shift = arena.take<Real>(chunks);
    partial = arena.take<Real>(chunks);
    input = arena.take<Real>(kChunk);
    potential = arena.take<Real>(kChunk);
    output = arena.take<Real>(kChunk);
  }
};

template <class S, class Real>
class Image {
 public:
  using Vec = typename S::Vec;
  using Ints = typename S::Ints;

  Image(const SoftTargetProblem& p, const SoftTargetLogSums* known, const SoftTargetOutputs& out)
      : p_(p),
        known_(known),
        out_(out),
        chunks_(ceil_div(p.prototypes, kChunk)),
        student_factor_(static_cast<Real>(p.student_scale * kLog2e)),
        teacher_factor_(static_cast<Real>(p.teacher_scale * kLog2e)) {}

  static std::int64_t targets(const SoftTargetProblem& p) { return p.teachers + (p.teachers == 2 ? 0 : 1); }
  // An odd number of lines, so that chunks of different rows do not compete for the same sets of the cache.
  static std::int64_t row_stride(const SoftTargetProblem& p) {
    return spread_stride(round_up(p.prototypes, S::kLanes), sizeof(Real));
  }

  // column_sum: [row_stride], to which the teachers' logits are added, or null.
  void run(std::int64_t b, const Scratch<Real>& scratch, Real* column_sum) const {
    const Real weight = p_.weight == nullptr ? 1 : static_cast<const Real*>(p_.weight)[b];
    if (weight == 0) return leave_out(b);
    for (std::int64_t t = 0; t < p_.teachers; ++t) read_teacher(t, b, scratch, column_sum);

    double loss = 0;  // in units of log2
    std::int64_t s = 0;
    if (p_.skip_same_view) {
      const std::int64_t same = p_.students < p_.teachers ? p_.students : p_.teachers;
      for (; s < same; ++s) loss += student(s, b, weight, others(s, scratch), scratch);
    }
    if (s < p_.students) {
      const Target<Real>& all = scratch.target[0];
      for (std::int64_t t = 1; t < p_.teachers; ++t) add(scratch.target[t], all);
      for (; s < p_.students; ++s) loss += student(s, b, weight, &all, scratch);
    }
    if (out_.loss != nullptr)
      static_cast<Real*>(out_.loss)[b] = static_cast<Real>(static_cast<double>(weight) * kLn2 * loss);
  }

 private:
  static constexpr Real kNone = -static_cast<Real>(__builtin_inf());
  static constexpr Real kHeadroom = 64;  // exponentials may be as large as 2^64, half the range of float

  std::int64_t chunk_length(std::int64_t c) const {
    const std::int64_t left = p_.prototypes - c * kChunk;
    return left < kChunk ? left : kChunk;
  }

  static const void* row(const View& view, DType dtype, std::int64_t b) {
    return static_cast<const char*>(view.data) + b * view.stride * element_bytes(dtype);
  }

  // Where the chunk lies that is read after chunk c of a row: in the same row, else at the start of the next.
  const void* ahead(const void* logits, DType dtype, std::int64_t c, const void* next_row) const {
    return c + 1 < chunks_ ? static_cast<const char*>(logits) + (c + 1) * kChunk * element_bytes(dtype)
                           : next_row;
  }

  const void* student_row(std::int64_t s, std::int64_t b) const {
    return row(p_.student[s], p_.student_dtype, b);
  }

  // What is read after a student's row: the next student, or the next image's first teacher.
  const void* after_student(std::int64_t s, std::int64_t b) const {
    if (s + 1 < p_.students) return student_row(s + 1, b);
    return row(p_.teacher[0], p_.teacher_dtype, b + 1 < p_.images ? b + 1 : b);
  }

  // log2 of the sum over all chunks, from sums relative to their shifts.
  double log_sum(const Scratch<Real>& scratch) const {
    Real largest = scratch.shift[0];
    for (std::int64_t c = 1; c < chunks_; ++c)
      largest = scratch.shift[c] > largest ? scratch.shift[c] : largest;
    double sum = 0;
    for (std::int64_t c = 0; c < chunks_; ++c) {
      sum += static_cast<double>(scratch.partial[c]) *
             __builtin_exp2(static_cast<double>(scratch.shift[c]) - largest);
    }
    return static_cast<double>(largest) + __builtin_log2(sum);
  }

  void read_teacher(std::int64_t t, std::int64_t b, const Scratch<Real>& scratch, Real* column_sum) const {
    const Target<Real>& target = scratch.target[t];
    const void* logits = row(p_.teacher[t], p_.teacher_dtype, b);
    const void* next_row =
        t + 1 < p_.teachers ? row(p_.teacher[t + 1], p_.teacher_dtype, b) : student_row(0, b);
    const Real* potential = static_cast<const Real*>(p_.column_potential);
    if (potential != nullptr) potential += t * p_.column_potential_stride;
    const std::int64_t at = t * p_.images + b;
    const bool is_known = known_ != nullptr || p_.row_potential != nullptr;
    double normaliser = 0;  // in units of log2
    if (p_.row_potential != nullptr) {
      normaliser = static_cast<const Real*>(p_.row_potential)[at] * kLog2e;
    } else if (known_ != nullptr) {
      normaliser = static_cast<const Real*>(known_->teacher)[at] * kLog2e;
    }

    Real shift = kNone;
    for (std::int64_t c = 0; c < chunks_; ++c) {
      const std::int64_t begin = c * kChunk, count = chunk_length(c);
      const Real* y = read_chunk<S>(p_.teacher_dtype, logits, begin, count, scratch.input);
      const Real* v =
          potential == nullptr ? nullptr : read_chunk<S>(potential, begin, count, scratch.potential);
      if (column_sum != nullptr) add_to(column_sum + begin, y, count);
      const Chunk chunk{c,
                        count,
                        nullptr,
                        target.data + begin,
                        ahead(logits, p_.teacher_dtype, c, next_row),
                        p_.teacher_dtype};
      if (v == nullptr) {
        const auto exponent = [&](std::int64_t k, Vec down) {
          return S::load(y + k) * teacher_factor_ - down;
        };
        shift = exponentials<false, true>(chunk, shift, exponent, scratch).shift;
      } else {
        const auto exponent = [&](std::int64_t k, Vec down) {
          return S::load(y + k) * teacher_factor_ - (S::load(v + k) * static_cast<Real>(kLog2e) + down);
        };
        shift = exponentials<false, true>(chunk, shift, exponent, scratch).shift;
      }
      target.mass[c] = scratch.partial[c];
    }
    if (!is_known || out_.teacher_lse != nullptr) {
      const double sum = log_sum(scratch);
      if (out_.teacher_lse != nullptr)
        static_cast<Real*>(out_.teacher_lse)[at] = static_cast<Real>(kLn2 * sum);
      if (!is_known) normaliser = sum;
    }
    for (std::int64_t c = 0; c < chunks_; ++c) {
      target.factor[c] =
          static_cast<Real>(__builtin_exp2(static_cast<double>(scratch.shift[c]) - normaliser));
      target.mass[c] *= target.factor[c];
    }
  }

  static void add_to(Real* sum, const Real* y, std::int64_t count) {
    for (std::int64_t k = 0; k < count; k += S::kLanes) S::store(sum + k, S::load(sum + k) + S::load(y + k));
  }

  // What a pass over a chunk works on.
  struct Chunk {
    std::int64_t number, count;
    const Real* q;      // to compare the exponents with, or null
    Real* e;            // where the exponentials go
    const void* ahead;  // what is read next
    DType dtype;        // in this form
  };

  struct Passed {
    Real shift;  // for the next chunk
    double dot;  // sum of q x exponent
  };

  // Computes a chunk's exponentials relative to a shift (kNone: there is none yet), and enters shift and sum
  // into the scratch. exponent(k, down): the exponents of lanes k and following, less down.
  template <bool kDot, bool kKeep, class Exponent>
  FASTSSL_INLINE Passed exponentials(const Chunk& chunk, Real shift, const Exponent& exponent,
                                     const Scratch<Real>& scratch) const {
    if (shift == kNone) {
      Vec top = S::broadcast(kNone);
      for (std::int64_t k = 0; k < chunk.count; k += S::kLanes) top = S::max(exponent(k, Vec{}), top);
      shift = S::largest(top);
    }
    for (;;) {
      const Real down = shift == kNone ? 0 : shift;  // of minus infinities only
      const Vec downs = S::broadcast(down);
      Vec sum0{}, sum1{}, dot0{}, dot1{}, top0 = S::broadcast(kNone), top1 = top0;
      for_vectors<S>(
          chunk.count,
          [&](std::int64_t k) {
            fetch<S>(chunk.dtype, chunk.ahead, k);
            const Vec t0 = exponent(k, downs), t1 = exponent(k + S::kLanes, downs);
            const Vec e0 = S::exp2(t0), e1 = S::exp2(t1);
            if (kKeep) {
              S::store(chunk.e + k, e0);
              S::store(chunk.e + k + S::kLanes, e1);
            }
            sum0 += e0;
            sum1 += e1;
            top0 = S::max(t0, top0);
            top1 = S::max(t1, top1);
            if (kDot) {
              dot0 += t0 * S::load(chunk.q + k);
              dot1 += t1 * S::load(chunk.q + k + S::kLanes);
            }
          },
          [&](std::int64_t k, Ints is_valid) {
            const Vec t0 = exponent(k, downs);
            const Vec e0 = is_valid ? S::exp2(t0) : Vec{};
            if (kKeep) S::store(chunk.e + k, e0);
            sum0 += e0;
            top0 = S::max(t0, top0);                      // past the end stand copies of a valid logit
            if (kDot) dot0 += t0 * S::load(chunk.q + k);  // and zeros of q
          });
      const Real rise = S::largest(S::max(top0, top1));
      if (rise > kHeadroom) {  // not with an infinite shift: exponents are NaN then
        shift = down + rise;
        continue;
      }
      scratch.shift[chunk.number] = down;
      scratch.partial[chunk.number] = S::sum(sum0 + sum1);
      return {rise > 0 ? down + rise : shift, static_cast<double>(S::sum(dot0 + dot1))};
    }
  }

  // Adds one row of probabilities to another.
  void add(const Target<Real>& from, const Target<Real>& to) const {
    for (std::int64_t c = 0; c < chunks_; ++c) {
      const Vec of_from = S::broadcast(from.factor[c]), of_to = S::broadcast(to.factor[c]);
      const std::int64_t begin = c * kChunk, count = chunk_length(c);
      for (std::int64_t k = begin; k < begin + count; k += S::kLanes)
        S::store(to.data + k, S::load(to.data + k) * of_to + S::load(from.data + k) * of_from);
      to.factor[c] = 1;
      to.mass[c] += from.mass[c];
    }
  }

  void clear(const Target<Real>& target) const {
    for (std::int64_t k = 0; k < p_.prototypes; k += S::kLanes) S::store(target.data + k, Vec{});
    for (std::int64_t c = 0; c < chunks_; ++c) target.factor[c] = target.mass[c] = 0;
  }

  // The sum of all teachers but the one of this view; null where there is no other. (Not the sum of all less
  // one: where that one is nearly everything, its rounding would be larger than the rest.)
  const Target<Real>* others(std::int64_t view, const Scratch<Real>& scratch) const {
    if (p_.teachers == 1) return nullptr;
    if (p_.teachers == 2) return &scratch.target[1 - view];
    const Target<Real>& sum = scratch.target[p_.teachers];
    clear(sum);
    for (std::int64_t t = 0; t < p_.teachers; ++t) {
      if (t != view) add(scratch.target[t], sum);
    }
    return &sum;
  }

  // Returns the loss of one student view, in units of log2.
  double student(std::int64_t s, std::int64_t b, Real weight, const Target<Real>* target,
                 const Scratch<Real>& scratch) const {
    const std::int64_t at = s * p_.images + b;
    double log2_sum = 0, loss = 0;
    if (known_ != nullptr) {
      log2_sum = static_cast<const Real*>(known_->student)[at] * kLog2e;
    } else {
      const Target<Real>* compared = target;
      if (target == nullptr) {  // in no pair: only its log-sum is wanted
        if (out_.student_lse == nullptr) return write_zeros(s, b), 0;
        compared = &scratch.target[p_.teachers];
        clear(*compared);
      }
      const double dot = out_.gradient == nullptr ? read_student<false>(s, b, *compared, scratch)
                                                  : read_student<true>(s, b, *compared, scratch);
      log2_sum = log_sum(scratch);
      for (std::int64_t c = 0; c < chunks_; ++c)
        loss += static_cast<double>(compared->mass[c]) * (log2_sum - static_cast<double>(scratch.shift[c]));
      loss -= dot;
      if (out_.student_lse != nullptr)
        static_cast<Real*>(out_.student_lse)[at] = static_cast<Real>(kLn2 * log2_sum);
    }
    if (target == nullptr) return write_zeros(s, b), 0;
    if (out_.gradient != nullptr) {
      double mass = 0;
      for (std::int64_t c = 0; c < chunks_; ++c) mass += static_cast<double>(target->mass[c]);
      const double unit = static_cast<double>(static_cast<const Real*>(out_.factor)[b]) *
                          static_cast<double>(weight) * p_.student_scale;
      for (std::int64_t c = 0; c < chunks_; ++c)
        write_gradient(s, b, c, log2_sum, unit, mass, *target, scratch);
    }
    return loss;
  }

  // The exponentials of a row, where kKeep, with shifts and sums of its chunks; returns the sum of
  // probability x (exponent - shift).
  template <bool kKeep>
  double read_student(std::int64_t s, std::int64_t b, const Target<Real>& target,
                      const Scratch<Real>& scratch) const {
    const void* logits = student_row(s, b);
    const void* next_row = after_student(s, b);
    double dot = 0;
    Real shift = kNone;
    for (std::int64_t c = 0; c < chunks_; ++c) {
      const std::int64_t begin = c * kChunk, count = chunk_length(c);
      const Real* x = read_chunk<S>(p_.student_dtype, logits, begin, count, scratch.input);
      const Chunk chunk{c,
                        count,
                        target.data + begin,
                        scratch.exponential + begin,
                        ahead(logits, p_.student_dtype, c, next_row),
                        p_.student_dtype};
      const auto exponent = [&](std::int64_t k, Vec down) { return S::load(x + k) * student_factor_ - down; };
      const Passed passed = exponentials<true, kKeep>(chunk, shift, exponent, scratch);
      shift = passed.shift;
      dot += passed.dot * static_cast<double>(target.factor[c]);
    }
    return dot;
  }

  // unit (mass softmax - q) of a chunk.
  FASTSSL_INLINE void write_gradient(std::int64_t s, std::int64_t b, std::int64_t c, double log2_sum,
                                     double unit, double mass, const Target<Real>& target,
                                     const Scratch<Real>& scratch) const {
    const std::int64_t begin = c * kChunk, count = chunk_length(c);
    const Real* q = target.data + begin;
    const Vec of_q = S::broadcast(static_cast<Real>(unit) * target.factor[c]);
    char* place = static_cast<char*>(out_.gradient[s].data) +
                  (b * out_.gradient[s].stride + begin) * element_bytes(p_.student_dtype);
    const bool direct = is_native(p_.student_dtype, q);
    Real* out = direct ? reinterpret_cast<Real*>(place) : scratch.output;

    if (known_ != nullptr) {
      const Real* x = read_chunk<S>(p_.student_dtype, student_row(s, b), begin, count, scratch.input);
      const Vec factor = S::broadcast(student_factor_), down = S::broadcast(static_cast<Real>(log2_sum));
      const Vec of_e = S::broadcast(static_cast<Real>(unit * mass));
      write(count, out, direct, [&](std::int64_t k) {
        return S::exp2_any(S::load(x + k) * factor - down) * of_e - S::load(q + k) * of_q;
      });
    } else {
      const Real* e = scratch.exponential + begin;
      const Vec of_e = S::broadcast(
          static_cast<Real>(unit * mass * __builtin_exp2(static_cast<double>(scratch.shift[c]) - log2_sum)));
      // Nothing is read from memory meanwhile: the next row can come.
      const std::int64_t bytes = element_bytes(p_.student_dtype);
      const char* next = static_cast<const char*>(after_student(s, b)) + begin * bytes;
      write(count, out, direct, [&](std::int64_t k) {
        __builtin_prefetch(next + k * bytes, 0, kSecondLevel);
        return S::load(e + k) * of_e - S::load(q + k) * of_q;
      });
    }
    if (!direct) write_row(p_.student_dtype, scratch.output, count, place);
  }

  // value(k), vector by vector; nothing past the end of an output that is `direct`, the gradient itself.
  template <class Value>
  FASTSSL_INLINE void write(std::int64_t count, Real* out, bool direct, const Value& value) const {
    const std::int64_t whole = direct ? count - count % S::kLanes : count;
    std::int64_t k = 0;
    if (direct && out_.fresh_gradient && reinterpret_cast<std::uintptr_t>(out) % sizeof(Vec) == 0) {
      for (; k < whole; k += S::kLanes) S::stream(out + k, value(k));
    } else {
      for (; k < whole; k += S::kLanes) S::store(out + k, value(k));
    }
    if (k < count) {
      const Vec last = value(k);
      __builtin_memcpy(out + k, &last, static_cast<std::size_t>(count - k) * sizeof(Real));
    }
  }

  void write_zeros(std::int64_t s, std::int64_t b) const {
    if (out_.gradient == nullptr) return;
    const std::int64_t bytes = element_bytes(p_.student_dtype);
    __builtin_memset(static_cast<char*>(out_.gradient[s].data) + b * out_.gradient[s].stride * bytes, 0,
                     static_cast<std::size_t>(p_.prototypes * bytes));
  }

  // An image of weight 0.
  void leave_out(std::int64_t b) const {
    for (std::int64_t s = 0; s < p_.students; ++s) {
      if (out_.student_lse != nullptr) static_cast<Real*>(out_.student_lse)[s * p_.images + b] = 0;
      write_zeros(s, b);
    }
    for (std::int64_t t = 0; t < p_.teachers; ++t) {
      if (out_.teacher_lse != nullptr) static_cast<Real*>(out_.teacher_lse)[t * p_.images + b] = 0;
    }
    if (out_.loss != nullptr) static_cast<Real*>(out_.loss)[b] = 0;
  }

  const SoftTargetProblem& p_;
  const SoftTargetLogSums* known_;
  const SoftTargetOutputs& out_;
  std::int64_t chunks_;
  Real student_factor_, teacher_factor_;
};

}  // namespace soft_target
}  // namespace FASTSSL_ISA
}  // namespace fastssl
