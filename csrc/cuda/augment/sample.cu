// Records of a view, one thread per image.
#include "augment/sampling.h"
#include "cuda/augment/augment.h"
#include "cuda/errors.h"

namespace fastssl::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kEntries =
    40;  // per launch: what the 4 KB of a kernel's arguments hold; a program may have more

struct Entries {
  double numbers[kEntries * portable::kEntry];
  int first, count, slot;  // number of the first, and where its steps begin
};

__global__ void __launch_bounds__(kThreads)
    sample(const Sampling s, const __grid_constant__ Entries entries, std::int64_t record_length) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.batch) return;
  portable::Draw draw;
  draw.seed = s.seed;
  draw.epoch = s.epoch;
  draw.view = s.view;
  draw.index = static_cast<std::uint32_t>(s.index[i]);
  draw.source_height = static_cast<int>(s.sizes != nullptr ? s.sizes[2 * i] : s.height);
  draw.source_width = static_cast<int>(s.sizes != nullptr ? s.sizes[2 * i + 1] : s.width);
  draw.height = static_cast<int>(s.out_height);
  draw.width = static_cast<int>(s.out_width);
  portable::draw_entries(draw, entries.numbers, entries.first, entries.count, entries.slot,
                         s.out + i * record_length);
}

}  // namespace

void view_parameters(const Sampling& problem) {
  check(cudaSetDevice(problem.device), "cudaSetDevice");
  std::int64_t slots = 0;
  for (std::int64_t e = 0; e < problem.entries; ++e) {
    slots += portable::slots_of(static_cast<int>(problem.program[e * portable::kEntry]));
  }
  const auto blocks = static_cast<unsigned>((problem.batch + kThreads - 1) / kThreads);
  Entries entries;
  entries.slot = 0;
  for (std::int64_t first = 0; first < problem.entries; first += kEntries) {
    entries.first = static_cast<int>(first);
    entries.count = static_cast<int>(problem.entries - first < kEntries ? problem.entries - first : kEntries);
    const double* numbers = problem.program + first * portable::kEntry;
    for (int j = 0; j < entries.count * portable::kEntry; ++j) entries.numbers[j] = numbers[j];
    sample<<<blocks, kThreads, 0, static_cast<cudaStream_t>(problem.stream)>>>(
        problem, entries, portable::kHeader + portable::kStep * slots);
    check_launch("sample");
    for (int e = 0; e < entries.count; ++e) {
      entries.slot += portable::slots_of(static_cast<int>(entries.numbers[e * portable::kEntry]));
    }
  }
}

}  // namespace fastssl::cuda
