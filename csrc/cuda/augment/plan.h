// Which steps of a view each launch takes. A barrier (contrast, or a step that reads other pixels) needs the
// whole view as it stands before it, so it begins a new launch, but for one that reads other pixels after a
// contrast:
//
//   pass 0         resampling, pointwise steps
//   pass 1, 2, ... [contrast] pointwise steps [step that reads other pixels] pointwise steps
#pragma once

#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {

// Steps first to middle - 1, the step `middle` that reads other pixels (none where middle == last), then up
// to last - 1. A pass for which nothing is left has first == number of steps.
struct Segment {
  int first, middle, last;
};

FASTSSL_HD int skip_pointwise(const float* record, int steps, int height, int width, int i) {
  while (i < steps && !is_barrier(step_of(record, i), height, width)) ++i;
  return i;
}

FASTSSL_HD Segment segment_of(const float* record, int steps, int height, int width, int pass) {
  int next = skip_pointwise(record, steps, height, width, 0);
  Segment segment = {0, next, next};
  for (int p = 0; p < pass; ++p) {
    segment.first = next;
    if (next < steps && step_of(record, next).code == kContrast) ++next;
    next = skip_pointwise(record, steps, height, width, next);
    segment.middle = next;
    if (next < steps && step_of(record, next).code != kContrast) {
      next = skip_pointwise(record, steps, height, width, next + 1);
    }
    segment.last = next;
  }
  return segment;
}

// Of a view's passes: which steps this one takes, and whether there are more barriers than launches allow
// for.
struct Plan {
  Segment segment;
  bool too_many;
};

FASTSSL_HD int barriers_of(const float* record, int steps, int height, int width) {
  int count = 0;
  for (int i = 0; i < steps; ++i) count += is_barrier(step_of(record, i), height, width);
  return count;
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
