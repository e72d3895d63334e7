// Host code of all kernels: a check of the launch, and the device's types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/base/dispatch.h"

namespace fastseq::cuda {

// The device's type for each of core's.
template <class T>
struct DeviceType {
  using type = T;
};
template <>
struct DeviceType<Float16> {
  using type = __half;
};
template <>
struct DeviceType<BFloat16> {
  using type = __nv_bfloat16;
};

// The type to compute sums and products of T in.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Raises std::runtime_error if the preceding launch was refused. Errors while a kernel runs appear in a later call, as
// always with CUDA.
inline void check_launch(const char* kernel) {
  const cudaError_t code = cudaGetLastError();
  if (code != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": launch failed: " + cudaGetErrorString(code));
  }
}

}  // namespace fastseq::cuda
