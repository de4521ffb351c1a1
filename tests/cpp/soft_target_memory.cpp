// Runs the soft-target kernels and the log-sums under Sinkhorn-Knopp on small odd sizes with buffers of
// exactly the right length, of the chosen instruction set (FASTSSL_CPU_ISA). Built with AddressSanitizer and
// UBSan: reading or writing outside of them ends the program. Outputs start as NaN and must come back finite.
#include <cstdio>
#include <vector>

#include "cpu/sinkhorn/sinkhorn.h"
#include "cpu/soft_target/soft_target.h"
#include "memory_check.h"

namespace {

using namespace fastssl;

using Bytes = std::vector<char>;

std::vector<View> views_of(std::vector<Bytes>& stack, std::int64_t stride) {
  std::vector<View> views;
  for (Bytes& bytes : stack) views.push_back({bytes.data(), stride});
  return views;
}

bool run(DType dtype, std::int64_t students, std::int64_t teachers, std::int64_t images,
         std::int64_t prototypes, bool with_potentials, bool skip_same_view) {
  const bool wide = dtype == DType::kFloat64;
  const std::int64_t stride = prototypes + images % 3;
  std::vector<Bytes> x, y, g;
  for (std::int64_t s = 0; s < students; ++s) {
    x.push_back(matrix(dtype, images, prototypes, stride));
    g.emplace_back(images * prototypes * size_of(dtype), '\xff');
  }
  for (std::int64_t t = 0; t < teachers; ++t) y.push_back(matrix(dtype, images, prototypes, stride));
  const Bytes column = vector_of(dtype, teachers * prototypes, 0.25),
              row = vector_of(dtype, teachers * images, 5);
  Bytes weight = vector_of(dtype, images, 0.5);
  std::memset(weight.data(), 0, wide ? 8 : 4);  // the first image is left out
  const Bytes factor = vector_of(dtype, images, 0.5);
  const std::vector<View> student = views_of(x, stride), teacher = views_of(y, stride),
                          gradient = views_of(g, prototypes);

  SoftTargetProblem p{};
  p.student = student.data();
  p.teacher = teacher.data();
  p.students = students;
  p.teachers = teachers;
  p.images = images;
  p.prototypes = prototypes;
  p.student_dtype = p.teacher_dtype = dtype;
  if (with_potentials) {
    p.column_potential = column.data();
    p.column_potential_stride = prototypes;
    p.row_potential = row.data();
    p.weight = weight.data();
  }
  p.student_scale = 10;
  p.teacher_scale = 25;
  p.skip_same_view = skip_same_view;
  p.threads = 2;

  Bytes loss = vector_of(dtype, images, kNaN), student_lse = vector_of(dtype, students * images, kNaN);
  Bytes teacher_lse = vector_of(dtype, teachers * images, kNaN), sums = vector_of(dtype, prototypes, kNaN);
  SoftTargetOutputs out{};
  out.loss = loss.data();
  out.student_lse = student_lse.data();
  out.teacher_lse = teacher_lse.data();
  out.column_sum = sums.data();
  soft_target_cross_entropy(p, nullptr, out);
  bool good = all_finite(loss, wide) && all_finite(student_lse, wide) && all_finite(teacher_lse, wide) &&
              all_finite(sums, wide);

  const auto gradients_are_finite = [&] {
    bool finite = true;
    for (const Bytes& bytes : g) finite = finite && (size_of(dtype) == 2 || all_finite(bytes, wide));
    for (Bytes& bytes : g) bytes.assign(bytes.size(), '\xff');
    return finite;
  };
  out.gradient = gradient.data();
  out.factor = factor.data();
  out.fresh_gradient = true;
  soft_target_cross_entropy(p, nullptr, out);
  good = good && gradients_are_finite();

  SoftTargetOutputs only{};
  only.gradient = gradient.data();
  only.factor = factor.data();
  const SoftTargetLogSums known{student_lse.data(), teacher_lse.data()};
  soft_target_cross_entropy(p, &known, only);
  good = good && gradients_are_finite();

  only.gradient = student.data();  // in the logits' place
  only.loss = loss.data();
  soft_target_cross_entropy(p, nullptr, only);

  for (const bool over_columns : {false, true}) {
    Bytes log_sums = vector_of(dtype, over_columns ? images : prototypes, kNaN);
    const Bytes potential = vector_of(dtype, over_columns ? prototypes : images, 0.25);
    LogSumProblem problem{};
    problem.logits = y[0].data();
    problem.rows = images;
    problem.cols = prototypes;
    problem.stride = stride;
    problem.dtype = dtype;
    problem.potential = with_potentials ? potential.data() : nullptr;
    problem.scale = 20;
    problem.over_columns = over_columns;
    problem.threads = 2;
    potential_logsumexp(problem, log_sums.data());
    good = good && all_finite(log_sums, wide);
  }
  return good;
}

}  // namespace

int main() {
  const std::int64_t prototypes[] = {1, 5, 16, 33, 1024, 1031, 2048, 2049, 4111};
  const std::int64_t views[][2] = {{1, 1}, {2, 1}, {3, 2}, {2, 3}, {4, 4}};
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    for (const std::int64_t k : prototypes) {
      for (const auto& count : views) {
        for (const bool with_potentials : {false, true}) {
          for (const bool skip : {false, true}) {
            // Images are shared out to threads, prototypes taken in chunks: many of both at once show no
            // more.
            for (const std::int64_t images : {3, k < 100 ? 19 : 2}) {
              if (run(dtype, count[0], count[1], images, k, with_potentials, skip)) continue;
              std::printf("wrong: dtype %d, %d students, %d teachers, %d images, %d prototypes\n",
                          static_cast<int>(dtype), static_cast<int>(count[0]), static_cast<int>(count[1]),
                          static_cast<int>(images), static_cast<int>(k));
              return 1;
            }
          }
        }
      }
    }
  }
  std::puts("clean");
  return 0;
}
