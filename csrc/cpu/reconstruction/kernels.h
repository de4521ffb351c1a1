// The entry points of one instruction set. Each reconstruction_<isa>.cpp includes this with its own
// FASTSSL_ISA and the width of its vectors. Everything stands in fastssl::<isa>::reconstruction, or the
// linker would merge it with what another family calls the same.
//
// A thread takes a patch after the other: its pixels into the first-level cache, their mean, their variance
// about it, then once through the predicted row, whose errors are added up and whose gradient is written.
// Meanwhile pixels come into the second-level cache, for a stretch of patches at a time: their rows lie
// apart, which no prefetcher foresees, and memory wants them in the order of their addresses.
#pragma once

#include "cpu/launch.h"
#include "cpu/rows.h"
#include "pixels.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace reconstruction {

template <class S, class Real>
class Kernels {
 public:
  using Vec = typename S::Vec;
  using Ints = typename S::Ints;

  Kernels(const PatchLossProblem& p, const PatchLossOutputs& out, int threads, Arena& arena)
      : p_(p),
        out_(out),
        columns_(p.width / p.patch_size),
        patches_(p.height / p.patch_size * columns_),
        pixels_(p.patch_size * p.patch_size),
        numbers_(pixels_ * p.channels),
        // Whole images where there are enough for every thread, so that what comes next is known in advance.
        patches_per_task_(p.batch >= kImagesPerThread * threads ? patches_ : columns_),
        stretch_(stretch_of(p, columns_)),
        buffers_(arena.take<Buffers>(threads)) {
    const std::int64_t beyond = p.channels * S::kLanes;  // where whole vectors end
    for (int i = 0; i < threads; ++i) {
      Real* pixels = arena.take<Real>(numbers_ + beyond);
      Real* target = arena.take<Real>(numbers_ + beyond);
      Real* input = arena.take<Real>(kChunk);
      Real* output = arena.take<Real>(kChunk);
      if (buffers_ != nullptr) buffers_[i] = {pixels, target, input, output};
    }
  }

  void run(Team& team) const {
    const std::int64_t per_image = patches_ / patches_per_task_;
    team.for_each(p_.batch * per_image, [&](std::int64_t task) {
      const std::int64_t b = task / per_image, first = task % per_image * patches_per_task_;
      if (first == 0 && out_.gradient != nullptr) {
        for (std::int64_t token = 0; token < p_.tokens; ++token)
          write_zeros(gradient_row(b, token - p_.tokens));
      }
      run_patches(b, first, first + patches_per_task_, buffers_[team.thread()]);
      S::finish_streaming();
    });
  }

 private:
  static constexpr std::int64_t kImagesPerThread = 4;
  static constexpr double kEpsilon = 1e-6;  // beside the variance

  // So much of a stretch's pixels: the second-level cache holds two, and what else is read.
  static constexpr std::int64_t kStretchBytes = 128 << 10;

  struct Buffers {
    Real *pixels, *target, *input, *output;
  };

  // Where a patch and its prediction lie.
  struct Patch {
    const char *pixels, *prediction;
  };

  // Patches side by side whose pixels are fetched together, and how many rows of pixels have been.
  struct Stretch {
    std::int64_t first, length, fetched;
  };

  static Real number(const void* numbers, std::int64_t at) { return static_cast<const Real*>(numbers)[at]; }

  Patch patch(std::int64_t b, std::int64_t l) const {
    const std::int64_t y = l / columns_ * p_.patch_size, x = l % columns_ * p_.patch_size;
    return {static_cast<const char*>(p_.image) +
                (b * p_.image_stride + y * p_.row_stride + x * p_.pixel_stride) * pixel_bytes(p_.pixel_type),
            static_cast<const char*>(p_.prediction) +
                (b * p_.prediction_stride + (p_.tokens + l) * p_.patch_stride) * element_bytes(p_.dtype)};
  }

  // The row of a patch, or of a token before the first one.
  char* gradient_row(std::int64_t b, std::int64_t l) const {
    return static_cast<char*>(out_.gradient) +
           (b * (p_.tokens + patches_) + p_.tokens + l) * numbers_ * element_bytes(p_.dtype);
  }

  std::int64_t next_taken(std::int64_t b, std::int64_t l, std::int64_t end) const {
    while (l < end && number(p_.weight, b * patches_ + l) == 0) ++l;
    return l;
  }

  void run_patches(std::int64_t b, std::int64_t begin, std::int64_t end, const Buffers& buffers) const {
    std::int64_t taken = next_taken(b, begin, end);
    Stretch here{}, ahead = stretch(begin, end);
    fetch_pixels(b, ahead, 1, 1);
    for (std::int64_t l = begin; l < end; ++l) {
      const std::int64_t at = b * patches_ + l;
      if (l == ahead.first) {
        here = ahead;
        ahead = stretch(here.first + here.length, end);
      }
      fetch_pixels(b, ahead, l - here.first + 1, here.length);
      if (l < taken) {
        if (out_.loss != nullptr) static_cast<Real*>(out_.loss)[at] = 0;
        if (out_.gradient != nullptr) write_zeros(gradient_row(b, l));
        continue;
      }
      taken = next_taken(b, l + 1, end);
      const Patch here = patch(b, l), next = taken < end ? patch(b, taken) : here;
      const double sum =
          run_patch(here, next, at, out_.gradient == nullptr ? nullptr : gradient_row(b, l), buffers);
      if (out_.loss != nullptr) {
        static_cast<Real*>(out_.loss)[at] = static_cast<Real>(static_cast<double>(number(p_.weight, at)) *
                                                              sum / static_cast<double>(numbers_));
      }
    }
  }

  // Returns the sum of the errors.
  double run_patch(const Patch& here, const Patch& next, std::int64_t at, char* gradient,
                   const Buffers& buffers) const {
    const Real* target = buffers.target;
    double sum = 0;
    if (is_usual<S>(p_) && p_.pixel_stride == 1) {
      sum = read_in_turns<S>(p_, here.pixels, buffers.target);
    } else {
      read_patch<S>(p_, here.pixels, buffers.pixels);
      if (p_.channels_first || p_.channels == 1) {
        target = buffers.pixels;
      } else if (p_.channels == 2) {
        interleave<S, 2>(buffers.pixels, pixels_, buffers.target);
      } else if (p_.channels == 3) {
        interleave<S, 3>(buffers.pixels, pixels_, buffers.target);
      } else {
        interleave<S, 4>(buffers.pixels, pixels_, buffers.target);
      }
      if (p_.normalize)
        sum = is_usual<S>(p_) ? sum_in_turns<S>(target, p_.patch_size)
                              : add_up(target, [](Vec x) { return x; });
    }
    Real mean = 0, inverse = 1;
    if (p_.normalize) {
      mean = static_cast<Real>(sum / static_cast<double>(numbers_));
      const double squares = add_up(target, [&](Vec x) { return (x - mean) * (x - mean); });
      inverse = static_cast<Real>(1 / __builtin_sqrt(squares / static_cast<double>(numbers_ - 1) + kEpsilon));
    }
    const Target t{target, mean, inverse};
    switch (p_.error) {
      case PatchError::kSquared:
        return compare(here, next, at, gradient, t, buffers, [](Vec d) { return Error{d * d, d + d}; });
      case PatchError::kAbsolute:
        return compare(here, next, at, gradient, t, buffers, [](Vec d) {
          // The slope of NaN is NaN.
          const Vec one = S::broadcast(1);
          return Error{d < 0 ? -d : d, d > 0 ? one : d < 0 ? -one : d};
        });
      default:
        const Real beta = static_cast<Real>(p_.beta), inverse_beta = static_cast<Real>(1 / p_.beta);
        return compare(here, next, at, gradient, t, buffers, [=](Vec d) {
          const Vec size = d < 0 ? -d : d, one = S::broadcast(1), slope = d * inverse_beta;
          const Vec half = d * slope * static_cast<Real>(0.5), linear = size - beta * static_cast<Real>(0.5);
          return Error{size < beta ? half : linear, slope > 1 ? one : slope < -1 ? -one : slope};
        });
    }
  }

  struct Target {
    const Real* numbers;
    Real mean, inverse;
  };

  struct Error {
    Vec value, slope;
  };

  // Sum over a patch, added up in chunks.
  template <class Value>
  FASTSSL_INLINE double add_up(const Real* numbers, const Value& value) const {
    double total = 0;
    for (std::int64_t begin = 0; begin < numbers_; begin += kChunk) {
      const Real* x = numbers + begin;
      Vec sum0{}, sum1{};
      for_vectors<S>(
          chunk_length(begin),
          [&](std::int64_t k) {
            sum0 += value(S::load(x + k));
            sum1 += value(S::load(x + k + S::kLanes));
          },
          [&](std::int64_t k, Ints is_valid) { sum0 += is_valid ? value(S::load(x + k)) : Vec{}; });
      total += static_cast<double>(S::sum(sum0 + sum1));
    }
    return total;
  }

  std::int64_t chunk_length(std::int64_t begin) const {
    return numbers_ - begin < kChunk ? numbers_ - begin : kChunk;
  }

  // Adds up the errors of a row and writes its gradient.
  template <class Of>
  FASTSSL_INLINE double compare(const Patch& here, const Patch& next, std::int64_t at, char* gradient,
                                const Target& target, const Buffers& buffers, const Of& of) const {
    const std::int64_t bytes = element_bytes(p_.dtype);
    const Vec mean = S::broadcast(target.mean), inverse = S::broadcast(target.inverse);
    const Vec unit =
        S::broadcast(gradient == nullptr ? 0 : number(out_.factor, at) / static_cast<Real>(numbers_));
    const bool direct = is_native(p_.dtype, buffers.output);
    const bool streams =
        direct && reinterpret_cast<std::uintptr_t>(gradient) % sizeof(Vec) == 0 && kChunk % S::kLanes == 0;
    double total = 0;
    for (std::int64_t begin = 0; begin < numbers_; begin += kChunk) {
      const std::int64_t count = chunk_length(begin);
      const Real* r = read_chunk<S>(p_.dtype, here.prediction, begin, count, buffers.input);
      const Real* t = target.numbers + begin;
      const char* ahead = next.prediction + begin * bytes;
      Real* out = direct && gradient != nullptr ? reinterpret_cast<Real*>(gradient) + begin : buffers.output;
      Vec sum0{}, sum1{};
      const auto error = [&](std::int64_t k) {
        return of(S::load(r + k) - (S::load(t + k) - mean) * inverse);
      };
      const auto last = [&](std::int64_t k, Ints is_valid) {
        const Error e = error(k);
        sum0 += is_valid ? e.value : Vec{};
        if (gradient == nullptr) return;
        const Vec g = e.slope * unit;
        const std::int64_t left = count - k < S::kLanes ? count - k : S::kLanes;
        __builtin_memcpy(out + k, &g, static_cast<std::size_t>(left) * sizeof(Real));
      };
      const auto pair = [&](std::int64_t k, const auto& write) {
        fetch<S>(p_.dtype, ahead, k);
        const Error e0 = error(k), e1 = error(k + S::kLanes);
        sum0 += e0.value;
        sum1 += e1.value;
        write(out + k, e0.slope * unit);
        write(out + k + S::kLanes, e1.slope * unit);
      };
      if (gradient == nullptr) {
        for_vectors<S>(count, [&](std::int64_t k) { pair(k, [](Real*, Vec) {}); }, last);
      } else if (streams) {
        for_vectors<S>(
            count, [&](std::int64_t k) { pair(k, [](Real* p, Vec v) { S::stream(p, v); }); }, last);
      } else {
        for_vectors<S>(count, [&](std::int64_t k) { pair(k, [](Real* p, Vec v) { S::store(p, v); }); }, last);
      }
      if (!direct && gradient != nullptr)
        write_row(p_.dtype, buffers.output, count, gradient + begin * bytes);
      total += static_cast<double>(S::sum(sum0 + sum1));
    }
    return total;
  }

  // As many patches side by side as leave room in the second-level cache for those that are computed.
  static std::int64_t stretch_of(const PatchLossProblem& p, std::int64_t columns) {
    const std::int64_t most =
        kStretchBytes / (p.patch_size * p.patch_size * p.channels * pixel_bytes(p.pixel_type));
    return most < 1 ? 1 : most < columns ? most : columns;
  }

  // Of the patches from `first` to `end`, those that are fetched first.
  Stretch stretch(std::int64_t first, std::int64_t end) const {
    std::int64_t length = columns_ - first % columns_;
    if (length > stretch_) length = stretch_;
    return {first, first + length < end ? length : end - first, 0};
  }

  // Fetches the pixels of a stretch up to a share of them, part / parts.
  void fetch_pixels(std::int64_t b, Stretch& stretch, std::int64_t part, std::int64_t parts) const {
    if (stretch.length == 0) return;
    const std::int64_t bytes = pixel_bytes(p_.pixel_type), size = p_.patch_size;
    const std::int64_t channels = p_.channel_stride == 1 ? 1 : p_.channels;  // side by side: one visit
    const std::int64_t length = ((size - 1) * p_.pixel_stride + 1) * bytes;
    const char* corner = patch(b, stretch.first).pixels;
    for (const std::int64_t end = channels * size * part / parts; stretch.fetched < end; ++stretch.fetched) {
      const std::int64_t c = stretch.fetched / size, y = stretch.fetched % size;
      const char* row = corner + (c * p_.channel_stride + y * p_.row_stride) * bytes;
      std::uintptr_t last = 0;
      for (std::int64_t i = 0; i < stretch.length; ++i, row += size * p_.pixel_stride * bytes) {
        if (number(p_.weight, b * patches_ + stretch.first + i) == 0) continue;
        for (std::int64_t k = 0; k < length; k += kCacheLine) {
          const std::uintptr_t line = reinterpret_cast<std::uintptr_t>(row + k) / kCacheLine;
          if (line != last) __builtin_prefetch(row + k, 0, kSecondLevel);
          last = line;
        }
      }
    }
  }

  void write_zeros(char* row) const {
    const std::int64_t bytes = numbers_ * element_bytes(p_.dtype);
    std::int64_t k = 0;
    if (reinterpret_cast<std::uintptr_t>(row) % sizeof(Vec) == 0) {
      for (; k + static_cast<std::int64_t>(sizeof(Vec)) <= bytes; k += sizeof(Vec))
        S::stream(reinterpret_cast<Real*>(row + k), Vec{});
    }
    __builtin_memset(row + k, 0, static_cast<std::size_t>(bytes - k));
  }

  const PatchLossProblem& p_;
  const PatchLossOutputs& out_;
  std::int64_t columns_, patches_, pixels_, numbers_, patches_per_task_, stretch_;
  Buffers* buffers_;  // [threads]
};

template <class S, class Real>
void run(const PatchLossProblem& p, const PatchLossOutputs& out) {
  constexpr double kPerPixel = 8;  // reading, normalising and comparing, in multiply-adds
  const double work = kPerPixel * static_cast<double>(p.batch) * static_cast<double>(p.channels) *
                      static_cast<double>(p.height) * static_cast<double>(p.width);
  const std::int64_t tasks = p.batch * (p.height / p.patch_size);
  const int threads = threads_for(tasks < p.threads ? tasks : p.threads, work);
  launch(
      threads, [&](Arena& arena) { return Kernels<S, Real>(p, out, threads, arena); },
      [](const Kernels<S, Real>& kernels, Team& team) { kernels.run(team); });
}

template <int kVectorBytes>
PatchLossKernels make_kernels() {
  return {run<Simd<float, kVectorBytes>, float>, run<Simd<double, kVectorBytes>, double>};
}

}  // namespace reconstruction
}  // namespace FASTSSL_ISA
}  // namespace fastssl
