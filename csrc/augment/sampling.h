// Draws the record of one image's view from a program: what is drawn depends on (seed, epoch, index, view)
// and on nothing else. Float64 throughout, as fastssl/ops/augment/reference.py.
#pragma once

#include "augment/random.h"
#include "augment/record.h"

namespace fastssl {
namespace FASTSSL_ISA {

constexpr int kEntry = 12;  // numbers per entry of a program: kind, probability, group, a0, ..., a8
constexpr int kBlocks = 8;  // blocks of Philox that belong to an entry
constexpr int kTries = 10;  // draws of a box's size before it falls back
constexpr int kAreas = 1, kRatios = 11, kTop = 21, kLeft = 22;  // words of a box

// What an entry draws.
enum Kind : int {
  kResizedCrop = 0,
  kWhole = 1,
  kCenter = 2,
  kCrop = 3,
  kHorizontalFlip = 10,
  kVerticalFlip = 11,
  kQuarterTurn = 12,
  kJitter = 20,
  kDrawGrayscale = 21,
  kDrawSolarize = 22,
  kDrawBlur = 23,
  kDrawRotate = 24,
  kDrawCutout = 25,
  kDrawNoise = 26,
  kDrawSobel = 27,
};

FASTSSL_HD int slots_of(int kind) { return kind == kJitter ? 4 : (kind > kJitter ? 1 : 0); }

// Whose view is drawn.
struct Draw {
  std::uint64_t seed;
  std::uint32_t epoch, view, index;
  int source_height, source_width;  // of the image
  int height, width;                // of the view
};

// Word `number` of what an entry draws, 0 <= number < 4 kBlocks.
FASTSSL_HD std::uint32_t word_of(const Draw& draw, int entry, int number) {
  const std::uint32_t block = static_cast<std::uint32_t>(kBlocks * entry + number / 4);
  const Words w = philox({block, draw.view, draw.index, draw.epoch}, static_cast<std::uint32_t>(draw.seed),
                         static_cast<std::uint32_t>(draw.seed >> 32));
  return number & 2 ? (number & 1 ? w.w3 : w.w2) : (number & 1 ? w.w1 : w.w0);
}

FASTSSL_HD double uniform_of(const Draw& draw, int entry, int number) {
  return uniform(word_of(draw, entry, number));
}

FASTSSL_HD double between(double lo, double hi, double u) { return add_product(lo, hi - lo, u); }

// Uniform among the positions at which `length` pixels fit into `size`.
FASTSSL_HD int position(int length, int size, double u) {
  return static_cast<int>(floor_of(u * (size - length + 1)));
}

// A box of a share of the area in [a0, a1] and a ratio of sides in [a2, a3] (log-uniform): the sides
// round(sqrt(area ratio)) and round(sqrt(area / ratio)) of the first try that is accepted.
struct Sides {
  double along, across;
};

FASTSSL_HD Sides sides_of(const Draw& draw, int entry, const double* a, double pixels, int attempt) {
  const double area = pixels * between(a[0], a[1], uniform_of(draw, entry, kAreas + attempt));
  const double low = log_of(a[2]), high = log_of(a[3]);
  const double ratio = exp_of(between(low, high, uniform_of(draw, entry, kRatios + attempt)));
  return {rint_of(sqrt_of(area * ratio)), rint_of(sqrt_of(area / ratio))};
}

FASTSSL_HD void store_crop(float* record, int top, int left, int height, int width) {
  record[0] = static_cast<float>(top);
  record[1] = static_cast<float>(left);
  record[2] = static_cast<float>(height);
  record[3] = static_cast<float>(width);
}

FASTSSL_HD void store_centered(const Draw& draw, double height, double width, float* record) {
  const int h = static_cast<int>(within(height, 1.0, static_cast<double>(draw.source_height)));
  const int w = static_cast<int>(within(width, 1.0, static_cast<double>(draw.source_width)));
  store_crop(record, (draw.source_height - h) / 2, (draw.source_width - w) / 2, h, w);
}

FASTSSL_HD void draw_crop(const Draw& draw, int entry, int kind, const double* a, float* record) {
  const int rows = draw.source_height, columns = draw.source_width;
  if (kind == kResizedCrop) {
    for (int attempt = 0; attempt < kTries; ++attempt) {
      const Sides sides = sides_of(draw, entry, a, static_cast<double>(rows) * columns, attempt);
      const double h = sides.across, w = sides.along;
      if (!(w > 0.0 && w <= columns && h > 0.0 && h <= rows)) continue;
      const int height = static_cast<int>(h), width = static_cast<int>(w);
      store_crop(record, position(height, rows, uniform_of(draw, entry, kTop)),
                 position(width, columns, uniform_of(draw, entry, kLeft)), height, width);
      return;
    }
    const double ratio = static_cast<double>(columns) / rows;
    store_centered(draw, ratio < a[2] ? rint_of(columns / a[2]) : rows,
                   ratio > a[3] ? rint_of(rows * a[3]) : columns, record);
  } else if (kind == kCenter) {
    const double tall = static_cast<double>(rows) / draw.height,
                 wide = static_cast<double>(columns) / draw.width;
    const double stretch = least(tall, wide) * a[0];
    store_centered(draw, rint_of(stretch * draw.height), rint_of(stretch * draw.width), record);
  } else if (kind == kCrop) {
    const int height = least(draw.height, rows), width = least(draw.width, columns);
    store_crop(record, position(height, rows, uniform_of(draw, entry, 1)),
               position(width, columns, uniform_of(draw, entry, 2)), height, width);
  } else {
    store_crop(record, 0, 0, rows, columns);
  }
}

FASTSSL_HD void store_step(float* slot, int code, double a = 0, double b = 0, double c = 0, double d = 0,
                           double e = 0) {
  slot[0] = static_cast<float>(code);
  slot[1] = static_cast<float>(a);
  slot[2] = static_cast<float>(b);
  slot[3] = static_cast<float>(c);
  slot[4] = static_cast<float>(d);
  slot[5] = static_cast<float>(e);
}

// Brightness, contrast, saturation, hue in the order of a permutation, numbered as itertools.permutations
// does. A component that never changes anything leaves its place empty.
FASTSSL_HD void draw_jitter(const Draw& draw, int entry, const double* a, float* slots) {
  const int number = static_cast<int>(24.0 * uniform_of(draw, entry, 1));
  unsigned remaining = 0x3210;  // four bits each
  for (int place = 0, left = number, rest = 6; place < 4; ++place) {
    const int choice = left / rest;
    left -= choice * rest;
    rest = place < 2 ? rest / (3 - place) : 1;
    const int which = remaining >> (4 * choice) & 15;
    const unsigned below = (1u << (4 * choice)) - 1;
    remaining = (remaining & below) | (remaining >> 4 & ~below);
    const double lo = a[2 * which], hi = a[2 * which + 1], neutral = which == 3 ? 0.0 : 1.0;
    if (lo == neutral && hi == neutral) {
      store_step(slots + kStep * place, kNothing);
    } else {
      store_step(slots + kStep * place, kBrightness + which,
                 between(lo, hi, uniform_of(draw, entry, 2 + which)));
    }
  }
}

// As torchvision's RandomErasing.
FASTSSL_HD void draw_cutout(const Draw& draw, int entry, const double* a, float* slot) {
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const Sides sides = sides_of(draw, entry, a, static_cast<double>(draw.height) * draw.width, attempt);
    const double h = sides.along, w = sides.across;
    if (!(h > 0.0 && h < draw.height && w > 0.0 && w < draw.width)) continue;
    const int height = static_cast<int>(h), width = static_cast<int>(w);
    store_step(slot, kCutout, position(height, draw.height, uniform_of(draw, entry, kTop)),
               position(width, draw.width, uniform_of(draw, entry, kLeft)), height, width, a[4]);
    return;
  }
  store_step(slot, kNothing);
}

FASTSSL_HD void draw_step(const Draw& draw, int entry, int kind, const double* a, float* slots) {
  switch (kind) {
    case kJitter:
      return draw_jitter(draw, entry, a, slots);
    case kDrawGrayscale:
      return store_step(slots, kGrayscale);
    case kDrawSolarize:
      return store_step(slots, kSolarize, a[0]);
    case kDrawBlur:
      return store_step(slots, kBlur, between(a[0], a[1], uniform_of(draw, entry, 1)), a[2]);
    case kDrawRotate:
      return store_step(slots, kRotate, between(a[0], a[1], uniform_of(draw, entry, 1)), a[2], a[3]);
    case kDrawCutout:
      return draw_cutout(draw, entry, a, slots);
    case kDrawNoise:
      return store_step(slots, kNoise, a[1], a[0], word_of(draw, entry, 1) >> 8, word_of(draw, entry, 2) >> 8,
                        a[2]);
    case kDrawSobel:
      return store_step(slots, kSobel);
    default:
      return store_step(slots, kNothing);
  }
}

// Entries first, first + 1, ... of a program, `count` of them, whose steps begin at slot `slot`; numbers:
// kEntry per entry. With the first ones the record's header is written as well.
FASTSSL_HD void draw_entries(const Draw& draw, const double* numbers, int first, int count, int slot,
                             float* record) {
  for (int i = 0; first == 0 && i < kHeader; ++i) record[i] = 0.0f;
  float* place = record + kHeader + static_cast<std::int64_t>(kStep) * slot;
  for (int entry = first; entry < first + count; ++entry, numbers += kEntry) {
    const double* a = numbers + 3;
    const int kind = static_cast<int>(numbers[0]), slots = slots_of(kind);
    const bool applied = uniform_of(draw, static_cast<int>(numbers[2]), 0) < numbers[1];
    if (kind < kHorizontalFlip) {
      draw_crop(draw, entry, kind, a, record);
    } else if (kind < kJitter) {
      if (applied && kind == kHorizontalFlip) record[4] = 1.0f;
      if (applied && kind == kVerticalFlip) record[5] = 1.0f;
      if (applied && kind == kQuarterTurn) {
        record[6] = 1.0f + static_cast<float>(floor_of(3.0 * uniform_of(draw, entry, 1)));
      }
    } else if (applied) {
      draw_step(draw, entry, kind, a, place);
    } else {
      for (int i = 0; i < slots; ++i) store_step(place + kStep * i, kNothing);
    }
    place += kStep * slots;
  }
}

// A whole record: kHeader + kStep numbers per slot.
FASTSSL_HD void draw_record(const Draw& draw, const double* program, int entries, float* record) {
  draw_entries(draw, program, 0, entries, 0, record);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
