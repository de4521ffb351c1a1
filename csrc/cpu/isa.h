// Which instruction set serves this process: chosen once, by CPUID, when the module is imported.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <vector>

namespace fastssl {

// Ordered: a machine that has one has all the lower ones of its architecture.
enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

const char* isa_name(Isa isa);

// The best instruction set that is both compiled in and supported here, lowered by FASTSSL_CPU_ISA if that is
// set. A name that does not exist throws std::invalid_argument; one that this machine lacks is lowered to
// what it has.
Isa select_isa();

std::vector<std::string> compiled_isas();

// A family's table of kernels for this process, of functions that make them, one per instruction set up to
// AVX-512.
template <class Table>
Table best_of(std::initializer_list<Table (*)()> tables) {
  return tables.begin()[std::min(static_cast<std::size_t>(select_isa()), tables.size() - 1)]();
}

// best_of() the functions of this name that are compiled in; one that is not is replaced by the one before
// it.
#ifdef FASTSSL_HAVE_AVX2
#define FASTSSL_AVX2_TABLE(name) avx2::name
#else
#define FASTSSL_AVX2_TABLE(name) baseline::name
#endif
#ifdef FASTSSL_HAVE_AVX512
#define FASTSSL_AVX512_TABLE(name) avx512::name
#else
#define FASTSSL_AVX512_TABLE(name) FASTSSL_AVX2_TABLE(name)
#endif
#define FASTSSL_BEST_OF(name) best_of({baseline::name, FASTSSL_AVX2_TABLE(name), FASTSSL_AVX512_TABLE(name)})

}  // namespace fastssl
