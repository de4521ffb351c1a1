#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace fastssl {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

bool is_compiled(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef FASTSSL_HAVE_AVX2
    case Isa::kAvx2:
      return true;
#endif
#ifdef FASTSSL_HAVE_AVX512
    case Isa::kAvx512:
      return true;
#endif
#ifdef FASTSSL_HAVE_AVX512_BF16
    case Isa::kAvx512Bf16:
      return true;
#endif
    default:
      return false;
  }
}

// Of what is compiled in only: a compiler that cannot make code for an instruction set may reject its name
// here.
bool is_supported(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return true;
#ifdef FASTSSL_HAVE_AVX2
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef FASTSSL_HAVE_AVX512
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#ifdef FASTSSL_HAVE_AVX512_BF16
    case Isa::kAvx512Bf16:
      return is_supported(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
#endif
    default:
      return false;
  }
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    default:
      return "baseline";
  }
}

Isa select_isa() {
  Isa highest = Isa::kAvx512Bf16;
  const char* wanted = std::getenv("FASTSSL_CPU_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    bool known = false;
    for (Isa isa : kAll) {
      if (std::string(wanted) == isa_name(isa)) {
        highest = isa;
        known = true;
      }
    }
    if (!known) {
      throw std::invalid_argument(
          std::string("FASTSSL_CPU_ISA must be one of baseline, avx2, avx512, avx512_bf16, got '") + wanted +
          "'");
    }
  }
#if defined(__x86_64__)
  __builtin_cpu_init();  // also asks the operating system whether it saves the wide registers
#endif
  Isa best = Isa::kBaseline;
  for (Isa isa : kAll) {
    if (isa <= highest && is_supported(isa)) best = isa;
  }
  return best;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (Isa isa : kAll) {
    if (is_compiled(isa)) names.push_back(isa_name(isa));
  }
  return names;
}

}  // namespace fastssl
