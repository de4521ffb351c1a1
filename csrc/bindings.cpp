// The Python module fastssl._C. Tensors arrive as addresses, so that nothing here depends on a version of
// torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/pairwise/pairwise.h"
#include "cpu/parallel.h"
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
  const LogsumexpOutputs outputs{pointer<void>(row_lse), pointer<void>(positive)};
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

void pairwise_loss(const PairwiseProblem& problem, bool allow_bfloat16_product, double weight, Address loss,
                   Address dq, Address dq_other, Address dscale) {
  const LossOutputs outputs{pointer<void>(loss), pointer<void>(dq), pointer<void>(dq_other),
                            pointer<void>(dscale)};
  py::gil_scoped_release release;
  fastssl::pairwise_loss(problem, allow_bfloat16_product, weight, outputs);
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
        py::arg("weight"), py::arg("loss"), py::arg("dq"), py::arg("dq_other"), py::arg("dscale"));
  m.def(
      "info", [isa] { return info(isa); },
      "Instruction set in use, those compiled in, OpenMP, threads, fork state.");
  m.def(
      "release_workspaces", &fastssl::release_workspaces,
      "Frees the scratch memory kept between calls by threads that are not in one; returns the bytes freed.");
}
