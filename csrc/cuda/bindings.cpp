// The Python module fastssl._CUDA. Tensors arrive as addresses and streams as handles, so that nothing here
// depends on a version of torch; CUDA's runtime is inside, so that it imports without a driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cuda/augment/augment.h"
#include "cuda/errors.h"

namespace py = pybind11;

namespace {

namespace cuda = fastssl::cuda;
using Address = std::uintptr_t;  // 0: absent

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void view_parameters(Address index, Address sizes, std::int64_t batch, std::int64_t height,
                     std::int64_t width, std::int64_t out_height, std::int64_t out_width, std::uint64_t seed,
                     std::uint32_t epoch, std::uint32_t view, const std::vector<double>& program, Address out,
                     int device, Address stream) {
  cuda::Sampling problem{};
  problem.index = pointer<const std::int64_t>(index);
  problem.sizes = pointer<const std::int64_t>(sizes);
  problem.batch = batch;
  problem.height = height;
  problem.width = width;
  problem.out_height = out_height;
  problem.out_width = out_width;
  problem.seed = seed;
  problem.epoch = epoch;
  problem.view = view;
  problem.program = program.data();
  problem.entries = static_cast<std::int64_t>(program.size()) / 12;
  problem.out = pointer<float>(out);
  problem.device = device;
  problem.stream = pointer<void>(stream);
  py::gil_scoped_release release;
  cuda::view_parameters(problem);
}

void write_table(const std::vector<std::int64_t>& numbers, Address out, int device, Address stream) {
  py::gil_scoped_release release;
  cuda::write_table(numbers.data(), static_cast<std::int64_t>(numbers.size()), pointer<std::int64_t>(out),
                    device, pointer<void>(stream));
}

// stack: height, width and bytes from image to image, channel to channel, row to row, pixel to pixel.
cuda::Problem problem_of(Address table, Address data, const std::array<std::int64_t, 6>& stack,
                         std::int64_t batch, std::int64_t channels, Address parameters, std::int64_t steps,
                         std::int64_t passes, std::int64_t height, std::int64_t width, bool bicubic,
                         Address out, int dtype) {
  cuda::Problem problem{};
  problem.images = {pointer<const std::int64_t>(table),
                    pointer<const std::uint8_t>(data),
                    stack[0],
                    stack[1],
                    stack[2],
                    stack[3],
                    stack[4],
                    stack[5]};
  problem.batch = batch;
  problem.channels = channels;
  problem.view = {
      pointer<const float>(parameters),  steps, passes, height, width, bicubic, pointer<void>(out),
      static_cast<fastssl::DType>(dtype)};
  return problem;
}

void augment_view(const cuda::Problem& asked, const std::vector<float>& mean, const std::vector<float>& std,
                  Address workspace, std::int64_t workspace_bytes, int device, Address stream) {
  cuda::Problem problem = asked;
  problem.mean = mean.data();
  problem.std = std.data();
  problem.workspace = pointer<void>(workspace);
  problem.workspace_bytes = workspace_bytes;
  problem.device = device;
  problem.stream = pointer<void>(stream);
  py::gil_scoped_release release;
  cuda::augment_view(problem);
}

py::dict info() {
  int driver = 0;
  fastssl::cuda::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  int runtime = 0;
  fastssl::cuda::check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  py::dict versions;
  versions["driver"] = driver;  // 0: there is none
  versions["runtime"] = runtime;
  return versions;
}

}  // namespace

PYBIND11_MODULE(_CUDA, m) {
  m.doc() = "fastssl's CUDA kernels";
  m.def("info", &info,
        "CUDA versions that the driver knows (0: no driver) and that the kernels were built with");

  py::class_<cuda::Problem>(m, "AugmentProblem")
      .def(py::init(&problem_of), py::kw_only(), py::arg("table"), py::arg("data"), py::arg("stack"),
           py::arg("batch"), py::arg("channels"), py::arg("parameters"), py::arg("steps"), py::arg("passes"),
           py::arg("height"), py::arg("width"), py::arg("bicubic"), py::arg("out"), py::arg("dtype"));
  m.def("augment_workspace", &cuda::workspace_bytes, py::arg("problem"), py::arg("images"),
        "Bytes with which augment_view takes so many images at a time");
  m.def("augment_view", &augment_view, py::arg("problem"), py::kw_only(), py::arg("mean"), py::arg("std"),
        py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"),
        "One view of a batch of images");
  m.def("write_table", &write_table, py::kw_only(), py::arg("numbers"), py::arg("out"), py::arg("device"),
        py::arg("stream"), "Numbers of the host, written to the device on a stream");
  m.def("view_parameters", &view_parameters, py::kw_only(), py::arg("index"), py::arg("sizes"),
        py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("out_height"), py::arg("out_width"),
        py::arg("seed"), py::arg("epoch"), py::arg("view"), py::arg("program"), py::arg("out"),
        py::arg("device"), py::arg("stream"), "Records of one view of a batch of images");
}
