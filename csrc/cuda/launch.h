// How kernels are started, and the device's types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

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

// The shared memory of a block that its launch asks for.
#ifdef __CUDACC__
__device__ inline void* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
#else
using cuda_on_host::dynamic_shared;
#endif

// What is wrong, and what to do if a build for other GPUs is the cause.
inline std::string in_words(cudaError_t code) {
  std::string words = cudaGetErrorString(code);
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction ||
      code == cudaErrorUnsupportedPtxVersion) {
    words += "; fastseq was built for other GPUs: build it with CMAKE_CUDA_ARCHITECTURES=native on this machine";
  }
  return words;
}

// Starts a kernel, with copies of the arguments. Raises std::runtime_error if the launch is refused. Errors while a
// kernel runs appear in a later call, as always with CUDA.
template <class... Params, class... Args>
void start(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
           cudaStream_t stream, Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  const cudaError_t code = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  if (code != cudaSuccess) {
    cudaGetLastError();  // else the next call would report it again
    throw std::runtime_error(std::string(name) + ": launch failed: " + in_words(code));
  }
}

}  // namespace fastseq::cuda
