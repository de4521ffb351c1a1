// The code of the CUDA kernels on small odd images in buffers of exactly the right length, in every step,
// with records of sense and of nonsense. Built with AddressSanitizer and UBSan: reading or writing outside of
// them ends the program.
#include <cstdio>
#include <cstdlib>

#include "augment_device.cpp"

namespace {

int below(int n) { return std::rand() % n; }

float nonsense() {
  const float odd[] = {__builtin_nanf(""), 1e30f, -1e30f, -1.0f, 0.0f, 0.5f, 3.0f, 1e9f, -7.5f, 16777216.0f};
  return odd[below(10)];
}

void check(int channels, bool as_table, bool bicubic, bool is_nonsense) {
  constexpr int kBatch = 2, kSteps = 4;
  const int source_height = 1 + below(40), source_width = 1 + below(90);
  const int height = 1 + below(40), width = 1 + below(80);
  const std::int64_t plane = static_cast<std::int64_t>(source_height) * source_width;
  const std::vector<std::uint8_t> images(kBatch * channels * plane, 100);
  std::vector<float> records;
  for (int image = 0; image < kBatch; ++image) {
    const int top = below(source_height), left = below(source_width);
    const float header[kHeader] = {static_cast<float>(top),
                                   static_cast<float>(left),
                                   static_cast<float>(1 + below(source_height - top)),
                                   static_cast<float>(1 + below(source_width - left)),
                                   static_cast<float>(below(2)),
                                   static_cast<float>(below(2)),
                                   static_cast<float>(below(4)),
                                   0.0f};
    for (const float number : header) records.push_back(is_nonsense ? nonsense() : number);
    for (int i = 0; i < kSteps; ++i) {
      records.push_back(static_cast<float>(below(13)));
      // Sigma, degrees or a place; a kernel's width or a place; ...
      const float numbers[] = {0.1f + below(120) / 10.0f, static_cast<float>(below(60)), 5.0f, 6.0f, 1.0f};
      for (const float number : numbers) records.push_back(is_nonsense ? nonsense() : number);
    }
  }
  std::vector<std::int64_t> stack = {reinterpret_cast<std::int64_t>(images.data()),
                                     source_height,
                                     source_width,
                                     channels * plane,
                                     plane,
                                     source_width,
                                     1};
  std::vector<std::int64_t> table;
  for (int image = 0; image < kBatch; ++image) {
    const std::int64_t row[] = {
        stack[0] + image * stack[3], source_height, source_width, plane, source_width, 1};
    table.insert(table.end(), row, row + kTableColumns);
  }
  const std::vector<float> mean(channels, 0.5f), std(channels, 0.2f);
  std::vector<float> out(static_cast<std::size_t>(kBatch) * channels * height * width);
  augment_view(as_table ? table.data() : nullptr, stack.data(), kBatch, channels, records.data(), kSteps,
               below(6) - 1, height, width, bicubic, mean.data(), std.data(), out.data());
}

}  // namespace

int main() {
  for (int round = 0; round < 60; ++round) check(1 + round % 3, round & 1, round & 2, round % 5 == 0);
  std::puts("clean");
}
