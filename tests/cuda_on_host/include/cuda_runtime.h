// The part of CUDA's runtime that fastseq uses, carried out by the host, for tests.
//
// Kernels are functions. A block's threads are fibers, which run one after another, in an order drawn each time, from
// one barrier to the next; two blocks run at a time. Streams do nothing until somebody waits for them; what then runs,
// and in which order, is drawn among all that CUDA allows. The host cannot touch device memory, but by copies. So a
// barrier, event or wait that is missing shows as a wrong result or a fault; and thread sanitizer sees fibers, blocks
// and streams as threads, and every pair of accesses that nothing orders as a race.
//
// Not modelled: warps in lockstep, the memory model of a GPU, its caches, the time that anything takes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local  // a thread of the host runs one block at a time

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern thread_local uint3 threadIdx;
extern thread_local uint3 blockIdx;
extern thread_local dim3 blockDim;
extern thread_local dim3 gridDim;

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureUnjoined = 904,
  cudaErrorStreamCaptureIsolation = 905,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaEventInterprocess = 4;
constexpr unsigned cudaIpcMemLazyEnablePeerAccess = 1;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaHostRegisterDefault = 0;

namespace cuda_on_host {
struct Stream;
struct Event;
struct Graph;

// What kernels call.
void sync_threads(const std::source_location& at);
void sync_warp(unsigned mask, const std::source_location& at);
void exchange(unsigned mask, const void* mine, std::size_t bytes, void* all, const std::source_location& at);
void* dynamic_shared();
unsigned lane();

cudaError_t check_image();
cudaError_t enqueue_kernel(dim3 grid, dim3 block, std::size_t shared_bytes, Stream* stream, std::function<void()> body);
}  // namespace cuda_on_host

using cudaStream_t = cuda_on_host::Stream*;
using cudaEvent_t = cuda_on_host::Event*;
using cudaGraph_t = cuda_on_host::Graph*;
using cudaGraphExec_t = cuda_on_host::Graph*;

inline void __syncthreads(std::source_location at = std::source_location::current()) { cuda_on_host::sync_threads(at); }
inline void __syncwarp(unsigned mask = 0xffffffffU, std::source_location at = std::source_location::current()) {
  cuda_on_host::sync_warp(mask, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, unsigned width = 32,
                   std::source_location at = std::source_location::current()) {
  T all[32];
  cuda_on_host::exchange(mask, &value, sizeof(T), all, at);
  const unsigned lane = cuda_on_host::lane();
  const unsigned last = lane / width * width + width - 1;
  return lane + delta > last ? value : all[lane + delta];
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits, std::source_location at = std::source_location::current()) {
  T all[32];
  cuda_on_host::exchange(mask, &value, sizeof(T), all, at);
  return all[cuda_on_host::lane() ^ bits];
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned from, std::source_location at = std::source_location::current()) {
  T all[32];
  cuda_on_host::exchange(mask, &value, sizeof(T), all, at);
  return all[from % 32];
}
template <class T>
T atomicAdd(T* address, T value) {
  if constexpr (std::is_integral_v<T>) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  } else {
    T old = __atomic_load_n(address, __ATOMIC_RELAXED);
    T wanted = old + value;
    while (!__atomic_compare_exchange(address, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      wanted = old + value;
    }
    return old;
  }
}
using std::isfinite;

struct cudaIpcMemHandle_t {
  char reserved[64];
};
struct cudaIpcEventHandle_t {
  char reserved[64];
};
struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  cudaUUID_t uuid;
};

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  // Arguments are copied at the launch, as CUDA does.
  std::tuple<std::remove_cvref_t<Params>...> copies(static_cast<Params>(args)...);
  return cuda_on_host::enqueue_kernel(config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream,
                                      [kernel, copies = std::move(copies)] { std::apply(kernel, copies); });
}

struct cudaFuncAttributes {};
template <class... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* /*attributes*/, void (* /*kernel*/)(Params...)) {
  return cuda_on_host::check_image();
}

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMalloc(void** pointer, std::size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* pointer);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory);
cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void* memory);
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event);
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
