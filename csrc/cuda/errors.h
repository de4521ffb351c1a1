// CUDA's errors as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastssl::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// After a launch, which itself returns nothing.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace fastssl::cuda
