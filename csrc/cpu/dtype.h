// The dtypes of inputs and outputs.
#pragma once

#include <cstdint>

namespace fastssl {

// Numbers shared with the Python that calls the kernels (fastssl/ops/*/cpp.py).
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

}  // namespace fastssl
