// The entry points of one instruction set. Each masking_<isa>.cpp includes this with its own FASTSSL_ISA and
// the width of its vectors.
//
// All of this moves memory, so every number is read and written once, outputs past the caches. Backward, a
// thread takes a few places of the sequence through all images: the sums over images then stay in its
// first-level cache, no two threads add to the same numbers, and each sum is formed in the images' order,
// whatever the number of threads.
#pragma once

#include "rows.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace masking {

// Threads for a problem that moves so many numbers.
inline int threads_of(std::int64_t tasks, std::int64_t threads, std::int64_t numbers) {
  return threads_for(least(tasks, threads), static_cast<double>(numbers));
}

// What forward kernels share: each task is some rows of an image.
template <class S, class Real>
class Forward {
 public:
  using Writer = RowWriter<S, Real>;
  static constexpr std::int64_t kRows = 32;

  Forward(std::int64_t batch, std::int64_t rows, std::int64_t dim, const Rows& out, int threads, Arena& arena)
      : rows_(rows),
        dim_(dim),
        out_(out),
        streams_(batch * rows * dim * element_bytes(out.dtype) > kCached),
        scratch_(arena.take<typename Writer::Scratch>(threads)) {}

  static std::int64_t tasks(std::int64_t batch, std::int64_t rows) { return batch * ceil_div(rows, kRows); }

  // row(b, r, writer, place) for all rows.
  template <class Row>
  void run(Team& team, std::int64_t batch, const Row& row) const {
    const Writer writer(streams_, scratch_[team.thread()]);
    const std::int64_t parts = ceil_div(rows_, kRows);
    team.for_each(batch * parts, [&](std::int64_t task) {
      const std::int64_t b = task / parts, begin = task % parts * kRows, end = least(begin + kRows, rows_);
      for (std::int64_t r = begin; r < end; ++r)
        row(b, r, writer, static_cast<char*>(out_.data) + (b * rows_ + r) * dim_ * element_bytes(out_.dtype));
      S::finish_streaming();
    });
  }

  // out = x + added; added may be null. `next`: a row like x that is read soon, or null.
  void write_sum(const Writer& writer, DType dtype, const void* x, const Real* added, const void* next,
                 char* out) const {
    for (std::int64_t begin = 0; begin < dim_; begin += kChunk) {
      const std::int64_t count = least(kChunk, dim_ - begin);
      const Real* numbers = writer.read(dtype, x, begin, count);
      if (added == nullptr) {
        writer.write(out_.dtype, out, begin, count, next,
                     [&](std::int64_t i, std::int64_t n) { return Writer::load(numbers + i, n); });
      } else {
        writer.write(out_.dtype, out, begin, count, next, [&](std::int64_t i, std::int64_t n) {
          return Writer::load(numbers + i, n) + Writer::load(added + begin + i, n);
        });
      }
    }
  }

  void write_nan(const Writer& writer, char* out) const {
    for (std::int64_t begin = 0; begin < dim_; begin += kChunk)
      writer.fill(out_.dtype, out, begin, least(kChunk, dim_ - begin), static_cast<Real>(__builtin_nan("")));
  }

 private:
  std::int64_t rows_, dim_;
  const Rows& out_;
  bool streams_;
  typename Writer::Scratch* scratch_;  // [threads]
};

template <class Real>
FASTSSL_INLINE const Real* real_row(const void* rows, std::int64_t r, std::int64_t dim) {
  return rows == nullptr ? nullptr : static_cast<const Real*>(rows) + r * dim;
}

template <class S, class Real>
void gather(const GatherProblem& p, const Rows& out) {
  using Move = Forward<S, Real>;
  const std::int64_t rows = p.prefix + p.kept;
  const int threads = threads_of(Move::tasks(p.batch, rows), p.threads, p.batch * rows * p.dim);
  const auto token = [&](std::int64_t b, std::int64_t k) -> const char* {
    if (k >= p.kept) return nullptr;
    const std::int64_t l = p.ids[b * p.kept + k];
    return l < 0 || l >= p.length ? nullptr : row_of(p.x, b, l);
  };
  launch(
      threads, [&](Arena& arena) { return Move(p.batch, rows, p.dim, out, threads, arena); },
      [&](const Move& move, Team& team) {
        move.run(team, p.batch, [&](std::int64_t b, std::int64_t r, const auto& writer, char* place) {
          const std::int64_t k = r - p.prefix;
          if (k < 0) {
            move.write_sum(writer, Move::Writer::kNative, real_row<Real>(p.prefix_rows, r, p.dim),
                           real_row<Real>(p.prefix_added, r, p.dim), nullptr, place);
          } else if (const char* x = token(b, k)) {
            move.write_sum(writer, p.x.dtype, x, real_row<Real>(p.positions, p.ids[b * p.kept + k], p.dim),
                           token(b, k + 1), place);
          } else {
            move.write_nan(writer, place);
          }
        });
      });
}

template <class S, class Real>
void unshuffle(const UnshuffleProblem& p, const Rows& out) {
  using Move = Forward<S, Real>;
  const std::int64_t rows = p.prefix + p.length;
  const int threads = threads_of(Move::tasks(p.batch, rows), p.threads, p.batch * rows * p.dim);
  launch(
      threads, [&](Arena& arena) { return Move(p.batch, rows, p.dim, out, threads, arena); },
      [&](const Move& move, Team& team) {
        move.run(team, p.batch, [&](std::int64_t b, std::int64_t r, const auto& writer, char* place) {
          const std::int64_t l = r - p.prefix;
          const std::int64_t from = l < 0 ? 0 : p.restore[b * p.length + l];
          const Real* added =
              l < 0 ? real_row<Real>(p.prefix_added, r, p.dim) : real_row<Real>(p.positions, l, p.dim);
          if (from < 0 || from >= p.length) {
            move.write_nan(writer, place);
          } else if (l < 0 || from < p.kept) {
            move.write_sum(writer, p.x.dtype, row_of(p.x, b, l < 0 ? r : p.prefix + from), added, nullptr,
                           place);
          } else {
            move.write_sum(writer, Move::Writer::kNative, p.mask_token, added, nullptr, place);
          }
        });
      });
}

// What backward kernels share: each task is a strip of some rows of the sequence, through all images.
template <class S, class Real>
class Backward {
 public:
  using Writer = RowWriter<S, Real>;
  static constexpr std::int64_t kRows = 4, kStrip = 1024;
  static_assert(kStrip <= kChunk, "strips are read as chunks");

  struct Scratch {
    typename Writer::Scratch rows;
    Real sums[kRows][kStrip], of_mask[kRows][kStrip], total[kStrip];
  };

  // ids [batch, sources] say which of `targets` tokens a source belongs to. rows: of the sequence; dx_prefix:
  // of the tokens before those in dx.
  Backward(const TokenRows& gradient, const std::int64_t* ids, std::int64_t batch, std::int64_t sources,
           std::int64_t targets, std::int64_t rows, std::int64_t dx_prefix, std::int64_t dim,
           const GradOfTokens& out, int threads, Arena& arena)
      : gradient_(gradient),
        ids_(ids),
        batch_(batch),
        sources_(sources),
        targets_(targets),
        dx_rows_(dx_prefix + targets),
        dim_(dim),
        out_(out),
        // Fewer rows per task where there are many threads: sums are the same.
        rows_per_task_(rows / (8 * threads) < 1 ? 1 : least(rows / (8 * threads), kRows)),
        streams_(batch * dx_rows_ * dim * element_bytes(out.dx_dtype) > kCached),
        scratch_(arena.take<Scratch>(threads)),
        first_(arena.take<std::int32_t>(batch * targets)),
        next_(arena.take<std::int32_t>(batch * sources)) {}

  static std::int64_t tasks(std::int64_t rows, std::int64_t dim) { return rows * ceil_div(dim, kStrip); }

  Chains chains(std::int64_t b) const { return {first_ + b * targets_, next_ + b * sources_}; }
  Scratch& scratch(const Team& team) const { return scratch_[team.thread()]; }
  Writer writer(Scratch& scratch) const { return Writer(streams_, scratch.rows); }

  void link(Team& team) const {
    constexpr std::int64_t kImages = 16;  // few numbers each
    team.for_each(ceil_div(batch_, kImages), [&](std::int64_t task) {
      for (std::int64_t b = task * kImages; b < least((task + 1) * kImages, batch_); ++b)
        Chains::link(ids_ + b * sources_, sources_, targets_, chains(b));
    });
  }

  // task(begin row, end row, begin, count of the strip).
  template <class Task>
  void for_strips(Team& team, std::int64_t rows, const Task& task) const {
    const std::int64_t strips = ceil_div(dim_, kStrip);
    team.for_each(ceil_div(rows, rows_per_task_) * strips, [&](std::int64_t i) {
      const std::int64_t row = i / strips * rows_per_task_, begin = i % strips * kStrip;
      task(row, least(row + rows_per_task_, rows), begin, least(kStrip, dim_ - begin));
      S::finish_streaming();
    });
  }

  // The gradient's row as Real.
  FASTSSL_INLINE const Real* read(const Writer& writer, std::int64_t b, std::int64_t r, std::int64_t begin,
                                  std::int64_t count) const {
    return writer.read(gradient_.dtype, row_of(gradient_, b, r), begin, count);
  }

  // The sum of a chain's rows, from the row `before` its sources on.
  const Real* chain_sum(const Writer& writer, Scratch& scratch, std::int64_t b, std::int64_t s,
                        std::int64_t before, std::int64_t begin, std::int64_t count) const {
    const std::int32_t* next = chains(b).next;
    if (next[s] < 0) return read(writer, b, before + s, begin, count);
    Writer::clear(scratch.total, count);
    for (; s >= 0; s = next[s]) Writer::add(scratch.total, read(writer, b, before + s, begin, count), count);
    return scratch.total;
  }

  // dx = x, and sums += x where that is not null.
  FASTSSL_INLINE void write(const Writer& writer, const Real* x, std::int64_t b, std::int64_t t,
                            std::int64_t begin, std::int64_t count, Real* sums) const {
    char* out = static_cast<char*>(out_.dx) + (b * dx_rows_ + t) * dim_ * element_bytes(out_.dx_dtype);
    if (sums == nullptr) {
      writer.write(out_.dx_dtype, out, begin, count, nullptr,
                   [&](std::int64_t i, std::int64_t n) { return Writer::load(x + i, n); });
    } else {
      writer.write(out_.dx_dtype, out, begin, count, nullptr, [&](std::int64_t i, std::int64_t n) {
        const auto v = Writer::load(x + i, n);
        Writer::store(sums + i, Writer::load(sums + i, n) + v, n);
        return v;
      });
    }
  }

  void write_zeros(const Writer& writer, std::int64_t b, std::int64_t t, std::int64_t begin,
                   std::int64_t count) const {
    char* out = static_cast<char*>(out_.dx) + (b * dx_rows_ + t) * dim_ * element_bytes(out_.dx_dtype);
    writer.fill(out_.dx_dtype, out, begin, count, 0);
  }

  // Brings a row of the gradient's strip into the cache, which is read soon.
  FASTSSL_INLINE void fetch_row(std::int64_t b, std::int64_t r, std::int64_t begin,
                                std::int64_t count) const {
    const std::int64_t bytes = element_bytes(gradient_.dtype);
    const char* row = row_of(gradient_, b, r) + begin * bytes;
    for (std::int64_t i = 0; i < count * bytes; i += kCacheLine) __builtin_prefetch(row + i, 0, kSecondLevel);
  }

 private:
  const TokenRows& gradient_;
  const std::int64_t* ids_;
  std::int64_t batch_, sources_, targets_, dx_rows_, dim_;
  const GradOfTokens& out_;
  std::int64_t rows_per_task_;
  bool streams_;
  Scratch* scratch_;             // [threads]
  std::int32_t *first_, *next_;  // [batch, targets], [batch, sources]
};

template <class S, class Real>
void gather_grad(const GatherGradProblem& p, const GradOfTokens& out) {
  using Move = Backward<S, Real>;
  using Writer = typename Move::Writer;
  const std::int64_t rows = p.prefix + p.length;
  const int threads = threads_of(Move::tasks(rows, p.dim), p.threads, p.batch * rows * p.dim);
  Real* const of_images = static_cast<Real*>(out.sums);
  const bool with_tokens = out.dx != nullptr || out.with_positions;
  launch(
      threads,
      [&](Arena& arena) {
        return Move(p.gradient, p.ids, p.batch, p.kept, p.length, rows, 0, p.dim, out, threads, arena);
      },
      [&](const Move& move, Team& team) {
        auto& scratch = move.scratch(team);
        const Writer writer = move.writer(scratch);
        if (with_tokens) move.link(team);
        move.for_strips(team, with_tokens ? rows : p.prefix,
                        [&](std::int64_t row, std::int64_t end, std::int64_t begin, std::int64_t count) {
                          for (std::int64_t r = row; r < end; ++r)
                            Writer::clear(scratch.sums[r - row], count);
                          for (std::int64_t b = 0; b < p.batch; ++b) {
                            const Chains chains = move.chains(b);
                            for (std::int64_t r = row; r < end; ++r) {
                              Real* sums = scratch.sums[r - row];
                              const std::int64_t l = r - p.prefix;
                              if (l < 0) {
                                Writer::add(sums, move.read(writer, b, r, begin, count), count);
                                continue;
                              }
                              const std::int64_t s = chains.first[l];
                              if (b + 1 < p.batch && move.chains(b + 1).first[l] >= 0)
                                move.fetch_row(b + 1, p.prefix + move.chains(b + 1).first[l], begin, count);
                              if (s < 0) {
                                if (out.dx != nullptr) move.write_zeros(writer, b, l, begin, count);
                                continue;
                              }
                              const Real* x = move.chain_sum(writer, scratch, b, s, p.prefix, begin, count);
                              if (out.dx != nullptr) {
                                move.write(writer, x, b, l, begin, count,
                                           out.with_positions ? sums : nullptr);
                              } else {
                                Writer::add(sums, x, count);
                              }
                            }
                          }
                          for (std::int64_t r = row; r < end && (r < p.prefix || out.with_positions); ++r)
                            __builtin_memcpy(of_images + r * p.dim + begin, scratch.sums[r - row],
                                             static_cast<std::size_t>(count) * sizeof(Real));
                        });
      });
}

template <class S, class Real>
void unshuffle_grad(const UnshuffleGradProblem& p, const GradOfTokens& out) {
  using Move = Backward<S, Real>;
  using Writer = typename Move::Writer;
  const std::int64_t rows = p.prefix + p.length;
  const int threads = threads_of(Move::tasks(rows, p.dim), p.threads, p.batch * rows * p.dim);
  Real* const of_images = static_cast<Real*>(out.sums);
  struct Made {
    Move move;
    Real* of_mask;  // [rows, dim]: each row's sum of what came from the mask token
  };
  launch(
      threads,
      [&](Arena& arena) {
        return Made{Move(p.gradient, p.restore, p.batch, p.length, p.kept, rows, p.prefix, p.dim, out,
                         threads, arena),
                    out.mask == nullptr ? nullptr : arena.take<Real>(rows * p.dim)};
      },
      [&](const Made& made, Team& team) {
        const Move& move = made.move;
        auto& scratch = move.scratch(team);
        const Writer writer = move.writer(scratch);
        move.link(team);
        move.for_strips(
            team, rows, [&](std::int64_t row, std::int64_t end, std::int64_t begin, std::int64_t count) {
              for (std::int64_t r = row; r < end; ++r) {
                Writer::clear(scratch.sums[r - row], count);
                Writer::clear(scratch.of_mask[r - row], count);
              }
              for (std::int64_t b = 0; b < p.batch; ++b) {
                const Chains chains = move.chains(b);
                for (std::int64_t r = row; r < end; ++r) {
                  const std::int64_t l = r - p.prefix, to = l < 0 ? -1 : p.restore[b * p.length + l];
                  if (b + 1 < p.batch) move.fetch_row(b + 1, r, begin, count);
                  const Real* x = move.read(writer, b, r, begin, count);
                  if (to >= p.kept && to < p.length) {
                    Writer::add(scratch.of_mask[r - row], x, count);
                  } else if (out.dx == nullptr || (l >= 0 && (to < 0 || to >= p.length))) {
                    Writer::add(scratch.sums[r - row], x, count);
                  } else if (l < 0 || (chains.first[to] == l && chains.next[l] < 0)) {
                    move.write(writer, x, b, l < 0 ? r : p.prefix + to, begin, count, scratch.sums[r - row]);
                  } else {  // several places have the same token
                    Writer::add(scratch.sums[r - row], x, count);
                    if (chains.first[to] == l)
                      move.write(writer, move.chain_sum(writer, scratch, b, l, p.prefix, begin, count), b,
                                 p.prefix + to, begin, count, nullptr);
                  }
                }
              }
              for (std::int64_t r = row; r < end; ++r) {
                Real *sums = scratch.sums[r - row], *of_mask = scratch.of_mask[r - row];
                const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(Real);
                if (out.mask != nullptr) __builtin_memcpy(made.of_mask + r * p.dim + begin, of_mask, bytes);
                if (!out.with_positions) continue;
                Writer::add(sums, of_mask, count);
                __builtin_memcpy(of_images + r * p.dim + begin, sums, bytes);
              }
            });
        if (out.dx != nullptr) {  // tokens that came to no place
          team.for_each(p.batch, [&](std::int64_t b) {
            for (std::int64_t t = 0; t < p.kept; ++t) {
              for (std::int64_t begin = 0; move.chains(b).first[t] < 0 && begin < p.dim; begin += kChunk)
                move.write_zeros(writer, b, p.prefix + t, begin, least(kChunk, p.dim - begin));
            }
            S::finish_streaming();
          });
        }
        if (out.mask == nullptr) return;
        Real* const of_mask = static_cast<Real*>(out.mask);
        team.for_each(ceil_div(p.dim, kChunk), [&](std::int64_t strip) {
          const std::int64_t begin = strip * kChunk, count = least(kChunk, p.dim - begin);
          Writer::clear(of_mask + begin, count);
          for (std::int64_t r = p.prefix; r < rows; ++r)
            Writer::add(of_mask + begin, made.of_mask + r * p.dim + begin, count);
        });
      });
}

// out[i] = (x[i stride] - mean) factor.
template <class Pixel, class Real, class Read>
FASTSSL_INLINE void read_pixels(const void* pixels, std::int64_t offset, std::int64_t stride,
                                std::int64_t count, Real mean, Real factor, Real* out, const Read& read) {
  const Pixel* x = static_cast<const Pixel*>(pixels) + offset;
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = (static_cast<Real>(read(x[i])) - mean) * factor;
  } else {
    for (std::int64_t i = 0; i < count; ++i)
      out[i] = (static_cast<Real>(read(x[i * stride])) - mean) * factor;
  }
}

template <class S, class Real>
class Patches {
 public:
  using Writer = RowWriter<S, Real>;

  Patches(const PatchProblem& p, const Rows& out, int threads, Arena& arena)
      : p_(p),
        numbers_(p.channels * p.patch_height * p.patch_width),
        move_(p.batch, p.kept, numbers_, out, threads, arena),
        rows_(arena.take<Real>(threads * numbers_)) {}

  void run(Team& team) const {
    Real* row = rows_ + team.thread() * numbers_;
    const std::int64_t columns = p_.width / p_.patch_width, length = p_.height / p_.patch_height * columns;
    move_.run(team, p_.batch, [&](std::int64_t b, std::int64_t k, const Writer& writer, char* place) {
      const std::int64_t id = p_.ids[b * p_.kept + k];
      if (id < 0 || id >= length) return move_.write_nan(writer, place);
      const std::int64_t corner = b * p_.image_stride + id / columns * p_.patch_height * p_.row_stride +
                                  id % columns * p_.patch_width * p_.pixel_stride;
      Real* out = row;
      for (std::int64_t c = 0; c < p_.channels; ++c) {
        const double unit = p_.pixel_type == kUint8 ? 255 : 1;
        const Real mean = static_cast<Real>(unit * p_.mean[c]),
                   factor = static_cast<Real>(1 / (unit * p_.std[c]));
        for (std::int64_t y = 0; y < p_.patch_height; ++y, out += p_.patch_width)
          read(corner + c * p_.channel_stride + y * p_.row_stride, mean, factor, out);
      }
      move_.write_sum(writer, Writer::kNative, row, nullptr, nullptr, place);
    });
  }

 private:
  FASTSSL_INLINE void read(std::int64_t offset, Real mean, Real factor, Real* out) const {
    const auto pixels = [&](auto type, const auto& as_number) {
      read_pixels<decltype(type)>(p_.images, offset, p_.pixel_stride, p_.patch_width, mean, factor, out,
                                  as_number);
    };
    const auto same = [](auto x) { return x; };
    switch (p_.pixel_type) {
      case static_cast<int>(DType::kFloat32):
        return pixels(float{}, same);
      case static_cast<int>(DType::kFloat64):
        return pixels(double{}, same);
      case static_cast<int>(DType::kBFloat16):
        return pixels(std::uint16_t{}, [](std::uint16_t x) { return from_bfloat16(x); });
      case static_cast<int>(DType::kFloat16):
        return pixels(std::uint16_t{}, [](std::uint16_t x) { return from_float16(x); });
      default:
        return pixels(std::uint8_t{}, same);
    }
  }

  const PatchProblem& p_;
  std::int64_t numbers_;
  Forward<S, Real> move_;
  Real* rows_;  // [threads, numbers]
};

template <class S, class Real>
void patches(const PatchProblem& p, const Rows& out) {
  using Move = Forward<S, Real>;
  const std::int64_t numbers = p.batch * p.kept * p.channels * p.patch_height * p.patch_width;
  const int threads = threads_of(Move::tasks(p.batch, p.kept), p.threads, numbers);
  launch(
      threads, [&](Arena& arena) { return Patches<S, Real>(p, out, threads, arena); },
      [](const Patches<S, Real>& patches, Team& team) { patches.run(team); });
}

template <int kVectorBytes>
MaskingKernels make_kernels() {
  using F = Simd<float, kVectorBytes>;
  using D = Simd<double, kVectorBytes>;
  return {{gather<F, float>, gather<D, double>},
          {gather_grad<F, float>, gather_grad<D, double>},
          {unshuffle<F, float>, unshuffle<D, double>},
          {unshuffle_grad<F, float>, unshuffle_grad<D, double>},
          {patches<F, float>, patches<D, double>}};
}

}  // namespace masking
}  // namespace FASTSSL_ISA
}  // namespace fastssl
