#include "soft_target.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace fastssl {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

void require_views(const View* views, std::int64_t count, const char* message) {
  require(views != nullptr && count >= 1, message);
  for (std::int64_t i = 0; i < count; ++i) require(views[i].data != nullptr, message);
}

}  // namespace

void soft_target_cross_entropy(const SoftTargetProblem& p, const SoftTargetLogSums* known,
                               const SoftTargetOutputs& out) {
  require_views(p.student, p.students, "soft_target: student must have at least one view, and none null");
  require_views(p.teacher, p.teachers, "soft_target: teacher must have at least one view, and none null");
  require(p.images >= 1 && p.prototypes >= 1, "soft_target: images and prototypes must be at least 1");
  require((p.student_dtype == DType::kFloat64) == (p.teacher_dtype == DType::kFloat64),
          "soft_target: student and teacher must both be float64 or neither");
  require((out.gradient == nullptr) == (out.factor == nullptr), "soft_target: gradient needs factor");
  require(known == nullptr || (known->student != nullptr && known->teacher != nullptr &&
                               out.gradient != nullptr && out.loss == nullptr && out.column_sum == nullptr),
          "soft_target: with known log-sums only the gradient can be computed");
  static const SoftTargetKernels kernels = FASTSSL_BEST_OF(soft_target_kernels);
  (p.student_dtype == DType::kFloat64 ? kernels.float64 : kernels.float32)(p, known, out);
}

}  // namespace fastssl
