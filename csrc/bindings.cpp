// The Python module fastssl._C. Tensors arrive as addresses, so that nothing here depends on a version of
// torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "cpu/augment/augment.h"
#include "cpu/isa.h"
#include "cpu/masking/masking.h"
#include "cpu/neighbors/neighbors.h"
#include "cpu/pages.h"
#include "cpu/pairwise/pairwise.h"
#include "cpu/parallel.h"
#include "cpu/reconstruction/reconstruction.h"
#include "cpu/sinkhorn/sinkhorn.h"
#include "cpu/soft_target/soft_target.h"
#include "cpu/workspace.h"

namespace py = pybind11;

namespace {

using fastssl::GradOutputs;
using fastssl::GradTerms;
using fastssl::LogsumexpOutputs;
using fastssl::LossOutputs;
using fastssl::PairwiseProblem;
using Address = std::uintptr_t;  // 0: absent

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// What all operations take. Python builds it once per call from tensors that stay alive during the call.
PairwiseProblem make_problem(Address q, Address k, std::int64_t rows, std::int64_t cols, std::int64_t dim,
                             std::int64_t q_stride, std::int64_t k_stride, Address q_other,
                             std::int64_t q_other_stride, int dtype, double scale, bool normalize,
                             int positives, Address row_key, Address col_key, bool exclude_self,
                             bool exclude_positives, std::int64_t row_offset, std::int64_t col_offset,
                             std::int64_t row_step, std::int64_t threads) {
  PairwiseProblem p{};
  p.q = pointer<const void>(q);
  p.k = pointer<const void>(k);
  p.rows = rows;
  p.cols = cols;
  p.dim = dim;
  p.q_stride = q_stride;
  p.k_stride = k_stride;
  p.q_other = pointer<const void>(q_other);
  p.q_other_stride = q_other_stride;
  p.dtype = static_cast<fastssl::DType>(dtype);
  p.scale = scale;
  p.normalize = normalize;
  p.positives = static_cast<fastssl::Positives>(positives);
  p.row_key = pointer<const std::int64_t>(row_key);
  p.col_key = pointer<const std::int64_t>(col_key);
  p.exclude_self = exclude_self;
  p.exclude_positives = exclude_positives;
  p.row_offset = row_offset;
  p.col_offset = col_offset;
  p.row_step = row_step;
  p.threads = threads;
  return p;
}

void pairwise_logsumexp(const PairwiseProblem& problem, bool allow_bfloat16_product, Address row_lse,
                        Address positive) {
  const LogsumexpOutputs outputs{pointer<void>(row_lse), pointer<void>(positive), nullptr};
  py::gil_scoped_release release;
  fastssl::pairwise_logsumexp(problem, allow_bfloat16_product, outputs);
}

void pairwise_logsumexp_grad(const PairwiseProblem& problem, bool allow_bfloat16_product, Address row_lse,
                             Address row_weight, Address row_positive_weight, Address col_lse,
                             Address col_weight, Address col_positive_weight, Address dq, Address dscale) {
  const GradTerms row{pointer<const void>(row_lse), pointer<const void>(row_weight),
                      pointer<const void>(row_positive_weight)};
  const GradTerms col{pointer<const void>(col_lse), pointer<const void>(col_weight),
                      pointer<const void>(col_positive_weight)};
  const GradOutputs outputs{pointer<void>(dq), pointer<void>(dscale)};
  py::gil_scoped_release release;
  fastssl::pairwise_logsumexp_grad(problem, allow_bfloat16_product, row, col, outputs);
}

void pairwise_loss(const PairwiseProblem& problem, bool allow_bfloat16_product, double weight,
                   Address row_weight, Address positive_weight, Address loss, Address dq, Address dq_other,
                   Address dscale) {
  const fastssl::LossWeights weights{weight, pointer<const void>(row_weight),
                                     pointer<const void>(positive_weight)};
  const LossOutputs outputs{pointer<void>(loss), pointer<void>(dq), pointer<void>(dq_other),
                            pointer<void>(dscale)};
  py::gil_scoped_release release;
  fastssl::pairwise_loss(problem, allow_bfloat16_product, weights, outputs);
}

void pairwise_bank(PairwiseProblem problem, bool allow_bfloat16_product, Address positive,
                   std::int64_t positive_stride, double weight, Address loss, Address dq, Address dscale) {
  problem.positive = pointer<const void>(positive);
  problem.positive_stride = positive_stride;
  const fastssl::BankOutputs outputs{pointer<void>(loss), pointer<void>(dq), pointer<void>(dscale)};
  py::gil_scoped_release release;
  fastssl::pairwise_bank(problem, allow_bfloat16_product, weight, outputs);
}

void pairwise_sigmoid(const PairwiseProblem& problem, bool allow_bfloat16_product, double bias, double weight,
                      Address loss, Address dq, Address dq_other, Address dscale, Address dbias) {
  const fastssl::SigmoidOutputs outputs{pointer<void>(loss), pointer<void>(dq), pointer<void>(dq_other),
                                        pointer<void>(dscale), pointer<void>(dbias)};
  py::gil_scoped_release release;
  fastssl::pairwise_sigmoid(problem, allow_bfloat16_product, bias, weight, outputs);
}

void nearest_neighbors(Address q, Address k, std::int64_t rows, std::int64_t cols, std::int64_t dim,
                       std::int64_t q_stride, std::int64_t k_stride, int dtype, std::int64_t count,
                       bool exclude_self, std::int64_t row_offset, std::int64_t threads,
                       bool allow_bfloat16_product, Address columns) {
  const fastssl::NeighborsProblem problem{pointer<const void>(q),
                                          pointer<const void>(k),
                                          rows,
                                          cols,
                                          dim,
                                          q_stride,
                                          k_stride,
                                          static_cast<fastssl::DType>(dtype),
                                          count,
                                          exclude_self,
                                          row_offset,
                                          threads};
  py::gil_scoped_release release;
  fastssl::nearest_neighbors(problem, allow_bfloat16_product, pointer<std::int64_t>(columns));
}

// Stacks of views: address, number of views, elements from view to view and from image to image.
using Stacks = std::vector<std::tuple<Address, std::int64_t, std::int64_t, std::int64_t>>;

std::vector<fastssl::View> make_views(const Stacks& stacks, fastssl::DType dtype) {
  const std::int64_t bytes = dtype == fastssl::DType::kFloat64   ? 8
                             : dtype == fastssl::DType::kFloat32 ? 4
                                                                 : 2;
  std::vector<fastssl::View> views;
  for (const auto& [address, count, view_stride, image_stride] : stacks) {
    for (std::int64_t i = 0; i < count; ++i)
      views.push_back({pointer<char>(address) + i * view_stride * bytes, image_stride});
  }
  return views;
}

void soft_target(const Stacks& student, const Stacks& teacher, std::int64_t images, std::int64_t prototypes,
                 int student_dtype, int teacher_dtype, Address column_potential,
                 std::int64_t column_potential_stride, Address row_potential, Address weight,
                 double student_scale, double teacher_scale, bool skip_same_view, std::int64_t threads,
                 Address loss, Address student_lse, Address teacher_lse, Address column_sum,
                 const Stacks& gradient, Address factor, bool fresh_gradient, bool known_log_sums) {
  const auto of_student = static_cast<fastssl::DType>(student_dtype);
  const auto of_teacher = static_cast<fastssl::DType>(teacher_dtype);
  const auto students = make_views(student, of_student), gradients = make_views(gradient, of_student);
  const auto teachers = make_views(teacher, of_teacher);
  if (!gradients.empty() && gradients.size() != students.size())
    throw std::invalid_argument("soft_target: gradient must have as many views as student");
  const fastssl::SoftTargetProblem problem{students.data(),
                                           teachers.data(),
                                           static_cast<std::int64_t>(students.size()),
                                           static_cast<std::int64_t>(teachers.size()),
                                           images,
                                           prototypes,
                                           of_student,
                                           of_teacher,
                                           pointer<const void>(column_potential),
                                           column_potential_stride,
                                           pointer<const void>(row_potential),
                                           pointer<const void>(weight),
                                           student_scale,
                                           teacher_scale,
                                           skip_same_view,
                                           threads};
  const fastssl::SoftTargetLogSums log_sums{pointer<const void>(student_lse),
                                            pointer<const void>(teacher_lse)};
  const fastssl::SoftTargetOutputs outputs{pointer<void>(loss),
                                           known_log_sums ? nullptr : pointer<void>(student_lse),
                                           known_log_sums ? nullptr : pointer<void>(teacher_lse),
                                           pointer<void>(column_sum),
                                           gradients.empty() ? nullptr : gradients.data(),
                                           pointer<const void>(factor),
                                           fresh_gradient};
  py::gil_scoped_release release;
  fastssl::soft_target_cross_entropy(problem, known_log_sums ? &log_sums : nullptr, outputs);
}

void potential_logsumexp(Address logits, std::int64_t rows, std::int64_t cols, std::int64_t stride, int dtype,
                         Address potential, double scale, bool over_columns, std::int64_t threads,
                         Address log_sums) {
  const fastssl::LogSumProblem problem{
      pointer<const void>(logits),    rows,  cols,         stride, static_cast<fastssl::DType>(dtype),
      pointer<const void>(potential), scale, over_columns, threads};
  py::gil_scoped_release release;
  fastssl::potential_logsumexp(problem, pointer<void>(log_sums));
}

// Address, height, width, and bytes from channel to channel, row to row and pixel to pixel.
using Image = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
// Address of the records, steps, height, width, whether bicubic, address of the pixels.
using OutputView = std::tuple<Address, std::int64_t, std::int64_t, std::int64_t, bool, Address>;

// One image stands for a stack, `image_stride` bytes from one to the next.
void augment_views(const std::vector<Image>& images, std::int64_t batch, std::int64_t image_stride,
                   std::int64_t channels, const std::vector<OutputView>& views,
                   const std::vector<float>& mean, const std::vector<float>& std, int dtype,
                   std::int64_t threads) {
  const bool stacked = images.size() == 1;
  if (!stacked && static_cast<std::int64_t>(images.size()) != batch)
    throw std::invalid_argument("augment_views: images must be one stack or one per record");
  if (static_cast<std::int64_t>(mean.size()) != channels || mean.size() != std.size())
    throw std::invalid_argument("augment_views: mean and std must have a number per channel");
  std::vector<fastssl::ImageSource> sources;
  for (std::int64_t i = 0; i < batch; ++i) {
    const auto& [address, height, width, channel_stride, row_stride, pixel_stride] = images[stacked ? 0 : i];
    const std::int64_t offset = stacked ? i * image_stride : 0;
    sources.push_back({pointer<const std::uint8_t>(address) + offset, height, width, channel_stride,
                       row_stride, pixel_stride});
  }
  std::vector<fastssl::ViewOutput> outputs;
  for (const auto& [records, steps, height, width, bicubic, out] : views)
    outputs.push_back({pointer<const float>(records), steps, height, width, bicubic, pointer<void>(out)});
  const fastssl::AugmentProblem problem{sources.data(),
                                        batch,
                                        channels,
                                        outputs.data(),
                                        static_cast<std::int64_t>(outputs.size()),
                                        mean.data(),
                                        std.data(),
                                        static_cast<fastssl::DType>(dtype),
                                        threads};
  py::gil_scoped_release release;
  fastssl::augment_views(problem);
}

void view_parameters(Address index, Address sizes, std::int64_t batch, std::int64_t height,
                     std::int64_t width, std::int64_t out_height, std::int64_t out_width, std::uint64_t seed,
                     std::uint32_t epoch, std::uint32_t view, const std::vector<double>& program,
                     std::int64_t threads, Address records) {
  constexpr std::size_t kEntry = 12;
  const fastssl::SampleProblem problem{pointer<const std::int64_t>(index),
                                       pointer<const std::int64_t>(sizes),
                                       batch,
                                       height,
                                       width,
                                       out_height,
                                       out_width,
                                       seed,
                                       epoch,
                                       view,
                                       program.data(),
                                       static_cast<std::int64_t>(program.size() / kEntry),
                                       pointer<float>(records),
                                       threads};
  py::gil_scoped_release release;
  fastssl::view_parameters(problem);
}

void patch_loss(Address image, int pixel_type,
                const std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>& shape,
                const std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>& strides,
                const std::vector<double>& scale, const std::vector<double>& shift, Address prediction,
                int dtype, std::int64_t prediction_stride, std::int64_t patch_stride, std::int64_t tokens,
                Address weight, std::int64_t patch_size, bool normalize, bool channels_first, int error,
                double beta, std::int64_t threads, Address loss, Address gradient, Address factor) {
  fastssl::PatchLossProblem p{};
  p.image = pointer<const void>(image);
  p.pixel_type = static_cast<fastssl::PixelType>(pixel_type);
  std::tie(p.batch, p.channels, p.height, p.width) = shape;
  std::tie(p.image_stride, p.channel_stride, p.row_stride, p.pixel_stride) = strides;
  if (static_cast<std::int64_t>(scale.size()) != p.channels || scale.size() != shift.size() ||
      p.channels > fastssl::kMostChannels)
    throw std::invalid_argument("patch_loss: scale and shift must have a number for each of 1 to 4 channels");
  std::copy(scale.begin(), scale.end(), p.scale);
  std::copy(shift.begin(), shift.end(), p.shift);
  p.prediction = pointer<const void>(prediction);
  p.dtype = static_cast<fastssl::DType>(dtype);
  p.prediction_stride = prediction_stride;
  p.patch_stride = patch_stride;
  p.tokens = tokens;
  p.weight = pointer<const void>(weight);
  p.patch_size = patch_size;
  p.normalize = normalize;
  p.channels_first = channels_first;
  p.error = static_cast<fastssl::PatchError>(error);
  p.beta = beta;
  p.threads = threads;
  const fastssl::PatchLossOutputs outputs{pointer<void>(loss), pointer<void>(gradient),
                                          pointer<const void>(factor)};
  py::gil_scoped_release release;
  fastssl::patch_loss(p, outputs);
}

void random_masks(Address noise, int dtype, Address index, std::uint64_t seed, std::uint32_t epoch,
                  std::uint32_t view, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t threads, Address kept, Address masked, Address restore, Address mask) {
  const fastssl::MaskProblem problem{pointer<const void>(noise),
                                     static_cast<fastssl::DType>(dtype),
                                     pointer<const std::int64_t>(index),
                                     seed,
                                     epoch,
                                     view,
                                     batch,
                                     length,
                                     keep,
                                     threads};
  const fastssl::MaskOutputs outputs{pointer<std::int64_t>(kept), pointer<std::int64_t>(masked),
                                     pointer<std::int64_t>(restore), pointer<float>(mask)};
  py::gil_scoped_release release;
  fastssl::random_masks(problem, outputs);
}

// Address, dtype, elements from image to image and from row to row.
using Tokens = std::tuple<Address, int, std::int64_t, std::int64_t>;

fastssl::TokenRows make_tokens(const Tokens& tokens) {
  const auto& [data, dtype, batch_stride, row_stride] = tokens;
  return {pointer<const void>(data), static_cast<fastssl::DType>(dtype), batch_stride, row_stride};
}

void gather_tokens(const Tokens& x, Address ids, Address positions, Address prefix_rows, Address prefix_added,
                   std::int64_t batch, std::int64_t length, std::int64_t kept, std::int64_t prefix,
                   std::int64_t dim, std::int64_t threads, Address out, int dtype) {
  const fastssl::GatherProblem problem{make_tokens(x),
                                       pointer<const std::int64_t>(ids),
                                       pointer<const void>(positions),
                                       pointer<const void>(prefix_rows),
                                       pointer<const void>(prefix_added),
                                       batch,
                                       length,
                                       kept,
                                       prefix,
                                       dim,
                                       threads};
  const fastssl::Rows rows{pointer<void>(out), static_cast<fastssl::DType>(dtype)};
  py::gil_scoped_release release;
  fastssl::gather_tokens(problem, rows);
}

void unshuffle_tokens(const Tokens& x, Address restore, Address mask_token, Address positions,
                      Address prefix_added, std::int64_t batch, std::int64_t length, std::int64_t kept,
                      std::int64_t prefix, std::int64_t dim, std::int64_t threads, Address out, int dtype) {
  const fastssl::UnshuffleProblem problem{make_tokens(x),
                                          pointer<const std::int64_t>(restore),
                                          pointer<const void>(mask_token),
                                          pointer<const void>(positions),
                                          pointer<const void>(prefix_added),
                                          batch,
                                          length,
                                          kept,
                                          prefix,
                                          dim,
                                          threads};
  const fastssl::Rows rows{pointer<void>(out), static_cast<fastssl::DType>(dtype)};
  py::gil_scoped_release release;
  fastssl::unshuffle_tokens(problem, rows);
}

// The arguments of both gradients are the same.
template <class Problem, void (*run)(const Problem&, const fastssl::GradOfTokens&)>
void grad_of_tokens(const Tokens& gradient, Address ids, std::int64_t batch, std::int64_t length,
                    std::int64_t kept, std::int64_t prefix, std::int64_t dim, std::int64_t threads,
                    Address dx, int dtype, Address mask, Address sums, bool with_positions) {
  const Problem problem{
      make_tokens(gradient), pointer<const std::int64_t>(ids), batch, length, kept, prefix, dim, threads};
  const fastssl::GradOfTokens outputs{pointer<void>(dx), static_cast<fastssl::DType>(dtype),
                                      pointer<void>(mask), pointer<void>(sums), with_positions};
  py::gil_scoped_release release;
  run(problem, outputs);
}

void visible_patches(Address images, int pixel_type, const std::vector<std::int64_t>& shape,
                     const std::vector<std::int64_t>& strides, Address ids, std::int64_t kept,
                     std::int64_t patch_height, std::int64_t patch_width, const std::vector<double>& mean,
                     const std::vector<double>& std, std::int64_t threads, Address out, int dtype) {
  if (shape.size() != 4 || strides.size() != 4)
    throw std::invalid_argument("visible_patches: images must have four dimensions");
  if (static_cast<std::int64_t>(mean.size()) != shape[1] || mean.size() != std.size())
    throw std::invalid_argument("visible_patches: mean and std must have a number per channel");
  const fastssl::PatchProblem problem{pointer<const void>(images),
                                      pixel_type,
                                      strides[0],
                                      strides[1],
                                      strides[2],
                                      strides[3],
                                      shape[0],
                                      shape[1],
                                      shape[2],
                                      shape[3],
                                      patch_height,
                                      patch_width,
                                      pointer<const std::int64_t>(ids),
                                      mean.data(),
                                      std.data(),
                                      kept,
                                      threads};
  const fastssl::Rows rows{pointer<void>(out), static_cast<fastssl::DType>(dtype)};
  py::gil_scoped_release release;
  fastssl::visible_patches(problem, rows);
}

py::dict info(fastssl::Isa isa) {
  py::dict d;
  d["isa"] = fastssl::isa_name(isa);
  d["isas_compiled"] = fastssl::compiled_isas();
  d["openmp"] = fastssl::has_openmp();
  d["threads_max"] = fastssl::max_threads();
  d["forked"] = fastssl::in_forked_process();
  d["workspace_bytes"] = fastssl::workspace_bytes();
  return d;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastssl. Call them through fastssl.functional.";
  fastssl::install_fork_guard();
  const fastssl::Isa isa = fastssl::select_isa();  // a bad FASTSSL_CPU_ISA fails the import, with its message

  py::class_<PairwiseProblem>(m, "PairwiseProblem")
      .def(py::init(&make_problem), py::kw_only(), py::arg("q"), py::arg("k"), py::arg("rows"),
           py::arg("cols"), py::arg("dim"), py::arg("q_stride"), py::arg("k_stride"), py::arg("q_other"),
           py::arg("q_other_stride"), py::arg("dtype"), py::arg("scale"), py::arg("normalize"),
           py::arg("positives"), py::arg("row_key"), py::arg("col_key"), py::arg("exclude_self"),
           py::arg("exclude_positives"), py::arg("row_offset"), py::arg("col_offset"), py::arg("row_step"),
           py::arg("threads"));
  m.def("pairwise_logsumexp", &pairwise_logsumexp, py::arg("problem"), py::kw_only(),
        py::arg("allow_bfloat16_product"), py::arg("row_lse"), py::arg("positive"));
  m.def("pairwise_logsumexp_grad", &pairwise_logsumexp_grad, py::arg("problem"), py::kw_only(),
        py::arg("allow_bfloat16_product"), py::arg("row_lse"), py::arg("row_weight"),
        py::arg("row_positive_weight"), py::arg("col_lse"), py::arg("col_weight"),
        py::arg("col_positive_weight"), py::arg("dq"), py::arg("dscale"));
  m.def("pairwise_loss", &pairwise_loss, py::arg("problem"), py::kw_only(), py::arg("allow_bfloat16_product"),
        py::arg("weight") = 0.0, py::arg("row_weight") = 0, py::arg("positive_weight") = 0, py::arg("loss"),
        py::arg("dq"), py::arg("dq_other"), py::arg("dscale"));
  m.def("pairwise_bank", &pairwise_bank, py::arg("problem"), py::kw_only(), py::arg("allow_bfloat16_product"),
        py::arg("positive"), py::arg("positive_stride"), py::arg("weight"), py::arg("loss"), py::arg("dq"),
        py::arg("dscale"));
  m.def("pairwise_sigmoid", &pairwise_sigmoid, py::arg("problem"), py::kw_only(),
        py::arg("allow_bfloat16_product"), py::arg("bias"), py::arg("weight"), py::arg("loss"), py::arg("dq"),
        py::arg("dq_other"), py::arg("dscale"), py::arg("dbias"));
  m.attr("FIXED_SHIFT_LIMIT") = fastssl::kFixedShiftLimit;
  m.def("nearest_neighbors", &nearest_neighbors, py::kw_only(), py::arg("q"), py::arg("k"), py::arg("rows"),
        py::arg("cols"), py::arg("dim"), py::arg("q_stride"), py::arg("k_stride"), py::arg("dtype"),
        py::arg("count"), py::arg("exclude_self"), py::arg("row_offset"), py::arg("threads"),
        py::arg("allow_bfloat16_product"), py::arg("columns"));
  m.def("soft_target", &soft_target, py::kw_only(), py::arg("student"), py::arg("teacher"), py::arg("images"),
        py::arg("prototypes"), py::arg("student_dtype"), py::arg("teacher_dtype"),
        py::arg("column_potential"), py::arg("column_potential_stride"), py::arg("row_potential"),
        py::arg("weight"), py::arg("student_scale"), py::arg("teacher_scale"), py::arg("skip_same_view"),
        py::arg("threads"), py::arg("loss"), py::arg("student_lse"), py::arg("teacher_lse"),
        py::arg("column_sum"), py::arg("gradient"), py::arg("factor"), py::arg("fresh_gradient"),
        py::arg("known_log_sums"));
  m.def("potential_logsumexp", &potential_logsumexp, py::kw_only(), py::arg("logits"), py::arg("rows"),
        py::arg("cols"), py::arg("stride"), py::arg("dtype"), py::arg("potential"), py::arg("scale"),
        py::arg("over_columns"), py::arg("threads"), py::arg("log_sums"));
  m.def("augment_views", &augment_views, py::kw_only(), py::arg("images"), py::arg("batch"),
        py::arg("image_stride"), py::arg("channels"), py::arg("views"), py::arg("mean"), py::arg("std"),
        py::arg("dtype"), py::arg("threads"));
  m.def("view_parameters", &view_parameters, py::kw_only(), py::arg("index"), py::arg("sizes"),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("out_height"), py::arg("out_width"),
        py::arg("seed"), py::arg("epoch"), py::arg("view"), py::arg("program"), py::arg("threads"),
        py::arg("records"));
  m.def("patch_loss", &patch_loss, py::kw_only(), py::arg("image"), py::arg("pixel_type"), py::arg("shape"),
        py::arg("strides"), py::arg("scale"), py::arg("shift"), py::arg("prediction"), py::arg("dtype"),
        py::arg("prediction_stride"), py::arg("patch_stride"), py::arg("tokens"), py::arg("weight"),
        py::arg("patch_size"), py::arg("normalize"), py::arg("channels_first"), py::arg("error"),
        py::arg("beta"), py::arg("threads"), py::arg("loss"), py::arg("gradient"), py::arg("factor"));
  m.def("random_masks", &random_masks, py::kw_only(), py::arg("noise"), py::arg("dtype"), py::arg("index"),
        py::arg("seed"), py::arg("epoch"), py::arg("view"), py::arg("batch"), py::arg("length"),
        py::arg("keep"), py::arg("threads"), py::arg("kept"), py::arg("masked"), py::arg("restore"),
        py::arg("mask"));
  m.def("gather_tokens", &gather_tokens, py::kw_only(), py::arg("x"), py::arg("ids"), py::arg("positions"),
        py::arg("prefix_rows"), py::arg("prefix_added"), py::arg("batch"), py::arg("length"), py::arg("kept"),
        py::arg("prefix"), py::arg("dim"), py::arg("threads"), py::arg("out"), py::arg("dtype"));
  m.def("unshuffle_tokens", &unshuffle_tokens, py::kw_only(), py::arg("x"), py::arg("restore"),
        py::arg("mask_token"), py::arg("positions"), py::arg("prefix_added"), py::arg("batch"),
        py::arg("length"), py::arg("kept"), py::arg("prefix"), py::arg("dim"), py::arg("threads"),
        py::arg("out"), py::arg("dtype"));
  m.def("gather_tokens_grad", &grad_of_tokens<fastssl::GatherGradProblem, fastssl::gather_tokens_grad>,
        py::kw_only(), py::arg("gradient"), py::arg("ids"), py::arg("batch"), py::arg("length"),
        py::arg("kept"), py::arg("prefix"), py::arg("dim"), py::arg("threads"), py::arg("dx"),
        py::arg("dtype"), py::arg("mask"), py::arg("sums"), py::arg("with_positions"));
  m.def("unshuffle_tokens_grad",
        &grad_of_tokens<fastssl::UnshuffleGradProblem, fastssl::unshuffle_tokens_grad>, py::kw_only(),
        py::arg("gradient"), py::arg("ids"), py::arg("batch"), py::arg("length"), py::arg("kept"),
        py::arg("prefix"), py::arg("dim"), py::arg("threads"), py::arg("dx"), py::arg("dtype"),
        py::arg("mask"), py::arg("sums"), py::arg("with_positions"));
  m.def("visible_patches", &visible_patches, py::kw_only(), py::arg("images"), py::arg("pixel_type"),
        py::arg("shape"), py::arg("strides"), py::arg("ids"), py::arg("kept"), py::arg("patch_height"),
        py::arg("patch_width"), py::arg("mean"), py::arg("std"), py::arg("threads"), py::arg("out"),
        py::arg("dtype"));
  m.def(
      "info", [isa] { return info(isa); },
      "Instruction set in use, those compiled in, OpenMP, threads, fork state.");
  m.def(
      "prefer_huge_pages",
      [](Address address, std::size_t bytes) { fastssl::prefer_huge_pages(pointer<void>(address), bytes); },
      "Asks for huge pages in memory that is about to be written for the first time.", py::arg("address"),
      py::arg("bytes"));
  m.def(
      "release_workspaces", &fastssl::release_workspaces,
      "Frees the scratch memory kept between calls by threads that are not in one; returns the bytes freed.");
}
