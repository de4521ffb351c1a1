// Which instruction set serves this process: chosen once, by CPUID, when the module is imported.
#pragma once

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

}  // namespace fastssl
