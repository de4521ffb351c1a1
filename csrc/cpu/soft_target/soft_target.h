// The soft-target cross-entropy and its gradient: arguments, and the table of kernels of one instruction set.
//
// For an image b, students x_s and teachers y_t over K prototypes, with a = student_scale and c =
// teacher_scale:
//   p_t = exp(c y_t - v_t - u_t),  u_t = log sum_k exp(c y_t - v_t) unless it is given,
//   loss_b = w_b sum over the pairs (t, s) of  m_t lse_s - a p_t . x_s,  m_t = sum_k p_tk,
//   lse_s = log sum_k exp(a x_s).
// A student needs of its pairs only the sum q_s of the teachers p_t that it is paired with.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"

namespace fastssl {

// One view: [images, prototypes].
struct View {
  void* data;
  std::int64_t stride;  // elements from image to image; the numbers of an image lie side by side
};

// Real is float, or double where the students are.
struct SoftTargetProblem {
  const View* student;  // [students]
  const View* teacher;  // [teachers]
  std::int64_t students, teachers, images, prototypes;
  DType student_dtype, teacher_dtype;
  const void* column_potential;          // v, Real: [prototypes], or [teachers, prototypes]; or null
  std::int64_t column_potential_stride;  // elements from teacher to teacher, or 0
  const void* row_potential;             // u, Real [teachers, images], or null
  const void* weight;                    // w, Real [images], or null; images of weight 0 are not read
  double student_scale, teacher_scale;
  bool skip_same_view;  // no pairs with t = s
  std::int64_t threads;
};

// Each null where it is not wanted.
struct SoftTargetOutputs {
  void* loss;            // Real [images]
  void* student_lse;     // Real [students, images]
  void* teacher_lse;     // Real [teachers, images], as without given u
  void* column_sum;      // Real [prototypes]: sum of the teachers' logits over views and images
  const View* gradient;  // [students], `student_dtype`: d (sum_b factor_b loss_b), maybe over the students
  const void* factor;    // Real [images]
  bool fresh_gradient;   // the gradient's memory is nobody's yet and is not read soon
};

// Log-sums that are known from before; then nothing but the gradient is written.
struct SoftTargetLogSums {
  const void* student;  // Real [students, images]
  const void* teacher;  // Real [teachers, images]
};

using SoftTargetKernel = void (*)(const SoftTargetProblem&, const SoftTargetLogSums* known,
                                  const SoftTargetOutputs&);

struct SoftTargetKernels {
  SoftTargetKernel float32, float64;  // by Real
};

namespace baseline {
SoftTargetKernels soft_target_kernels();
}
namespace avx2 {
SoftTargetKernels soft_target_kernels();
}
namespace avx512 {
SoftTargetKernels soft_target_kernels();
}

// Checks the arguments (std::invalid_argument), picks the kernel and runs it.
void soft_target_cross_entropy(const SoftTargetProblem& problem, const SoftTargetLogSums* known,
                               const SoftTargetOutputs& outputs);

}  // namespace fastssl
