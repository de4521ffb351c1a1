// Operands in the layout that the tiles read.
#pragma once

#include "arena.h"
#include "convert.h"
#include "tile.h"

namespace fastssl {
namespace FASTSSL_ISA {

// The rows of one matrix, or of two in turns.
struct Rows {
  char* data[2];  // the second null: one matrix
  std::int64_t stride[2];

  char* row(std::int64_t i, DType dtype) const {
    const std::int64_t turns = data[1] != nullptr ? 1 : 0, which = i & turns;
    return data[which] + (i >> turns) * stride[which] * element_bytes(dtype);
  }
};

// An input as it was given.
struct Source {
  Rows rows;
  std::int64_t count, dim;
  DType dtype;
  bool normalize;
};

// One input, normalised and packed, in blocks of kBlock rows; rows past the end are zero.
template <class P>
struct Operand {
  using Real = typename P::Real;
  using Unit = typename P::Unit;

  static constexpr Real kSmallestNorm = static_cast<Real>(1e-12);  // as torch.nn.functional.normalize

  Source source{};
  std::int64_t blocks = 0, padded = 0, steps = 0;
  // [blocks][steps][kBlock]: each block transposed, so that kRows neighbours are broadcast one after the
  // other and kCols neighbours are a vector load. Both sides of the similarity product.
  Unit* transposed = nullptr;
  // [blocks][dim / kCols][kBlock / kFold][kCols]: rows, kCols elements of each block after the other (for
  // kFold 2: pairs of rows, element by element), zero past dim. Right side of the gradient product.
  Unit* rows = nullptr;
  std::int64_t row_stride = 0;
  Real* inverse_norm = nullptr;  // [padded]; 1 without normalisation

  Operand() = default;
  // Not packed: blocks go where pack_into() is told.
  explicit Operand(const Source& from) : source(from) {
    blocks = ceil_div(source.count, kBlock);
    padded = blocks * kBlock;
    steps = ceil_div(source.dim, P::kFold);
    row_stride = stride_for(source.dim);
  }
  Operand(const Source& from, bool with_rows, Arena& arena) : Operand(from) {
    transposed = arena.take<Unit>(blocks * block_size());
    if (with_rows) rows = arena.take<Unit>(blocks * block_rows_size());
    inverse_norm = arena.take<Real>(padded);
  }

  // Units of one block.
  std::int64_t block_size() const { return steps * kBlock; }
  std::int64_t block_rows_size() const { return kBlock / P::kFold * round_up(source.dim, P::kCols); }

  static std::int64_t stride_for(std::int64_t dim) {
    return spread_stride(round_up(dim, P::kCols), sizeof(Unit));
  }

  // Size of the scratch that pack() and BlockProduct need per thread, in Reals.
  static std::int64_t scratch_size(std::int64_t dim) {
    return kBlock * (stride_for(dim) > kBlock ? stride_for(dim) : kBlock);
  }

  const Unit* block(std::int64_t b) const { return transposed + b * block_size(); }
  const Unit* block_rows(std::int64_t b) const { return rows + b * block_rows_size(); }

  // Row i as Real, normalised, zero from dim to row_stride. Returns the factor that normalised it.
  Real read_normalised(std::int64_t i, Real* out) const {
    const std::int64_t dim = source.dim;
    read_row(source.dtype, source.rows.row(i, source.dtype), dim, out);
    for (std::int64_t d = dim; d < row_stride; ++d) out[d] = 0;
    if (!source.normalize) return 1;
    typename P::Vec squares{};
    for (std::int64_t d = 0; d < dim; d += P::kLanes) squares += P::load(out + d) * P::load(out + d);
    const Real norm = square_root(P::sum(squares));
    const Real inverse = 1 / (norm < kSmallestNorm ? kSmallestNorm : norm);  // NaN passes
    for (std::int64_t d = 0; d < dim; d += P::kLanes) P::store(out + d, P::load(out + d) * inverse);
    return inverse;
  }

  // Packs block b; scratch: [kBlock][row_stride].
  void pack(std::int64_t b, Real* scratch) const {
    pack_into(b, scratch, transposed + b * block_size(),
              rows == nullptr ? nullptr : rows + b * block_rows_size(), inverse_norm + b * kBlock);
  }

  // The same to another place. out_rows, out_norms: null where they are not wanted.
  void pack_into(std::int64_t b, Real* scratch, Unit* out, Unit* out_rows, Real* out_norms) const {
    const std::int64_t first = b * kBlock;
    const std::int64_t valid = source.count - first < kBlock ? source.count - first : kBlock;
    for (std::int64_t r = 0; r < valid; ++r) {
      const Real inverse = read_normalised(first + r, scratch + r * row_stride);
      if (out_norms != nullptr) out_norms[r] = inverse;
    }
    for (std::int64_t r = valid; r < kBlock; ++r) {
      for (std::int64_t d = 0; d < row_stride; ++d) scratch[r * row_stride + d] = 0;
      if (out_norms != nullptr) out_norms[r] = 0;
    }
    // In strips of steps, so that the lines being written stay in cache while all rows pass.
    constexpr std::int64_t kStrip = 16;
    for (std::int64_t begin = 0; begin < steps; begin += kStrip) {
      const std::int64_t end = begin + kStrip < steps ? begin + kStrip : steps;
      for (std::int64_t r = 0; r < kBlock; ++r) {
        const Real* row = scratch + r * row_stride;
        for (std::int64_t t = begin; t < end; ++t) out[t * kBlock + r] = P::fold(row + t * P::kFold, 1);
      }
    }
    if (out_rows == nullptr) return;
    for (std::int64_t d = 0; d < source.dim; d += P::kCols) {
      for (std::int64_t r = 0; r < kBlock; r += P::kFold, out_rows += P::kCols) {
        const Real* row = scratch + r * row_stride + d;
        for (int e = 0; e < P::kCols; ++e) out_rows[e] = P::fold(row + e, row_stride);
      }
    }
  }

 private:
  static float square_root(float x) { return __builtin_sqrtf(x); }
  static double square_root(double x) { return __builtin_sqrt(x); }
};

}  // namespace FASTSSL_ISA
}  // namespace fastssl
