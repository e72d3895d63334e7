// CUDA's streams, events and memory as objects. Calls that fail raise std::runtime_error.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastseq::cuda {

inline void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // else the next call would report it again
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(code));
}

// The device that this thread's calls are for.
inline void set_device(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

// While one lives, they are for this device.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    set_device(device);
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT(*-explicit-constructor): it is one

 private:
  cudaStream_t stream_ = nullptr;
};

// A stream that is lent: it is never destroyed, as others may remember it for longer than its user lives (PyTorch's
// allocator does, for memory that was used in it).
class LentStream {
 public:
  explicit LentStream(int device) : device_(device) {
    const OnDevice on(device);
    const std::scoped_lock lock(mutex());
    auto& unused = all()[device];
    if (unused.empty()) unused.push_back(new Stream);
    stream_ = unused.back();
    unused.pop_back();
  }
  ~LentStream() {
    const std::scoped_lock lock(mutex());
    all()[device_].push_back(stream_);
  }
  LentStream(const LentStream&) = delete;
  LentStream& operator=(const LentStream&) = delete;
  operator cudaStream_t() const { return *stream_; }  // NOLINT(*-explicit-constructor): it is one

 private:
  static std::map<int, std::vector<Stream*>>& all() {
    static auto* const unused = new std::map<int, std::vector<Stream*>>;
    return *unused;
  }
  static std::mutex& mutex() {
    static auto* const mutex = new std::mutex;
    return *mutex;
  }

  int device_;
  Stream* stream_ = nullptr;
};

class Event {
 public:
  Event() : Event(cudaEventDisableTiming) {}
  explicit Event(unsigned flags) { check(cudaEventCreateWithFlags(&event_, flags), "cudaEventCreateWithFlags"); }
  explicit Event(const cudaIpcEventHandle_t& handle) {  // another process'
    check(cudaIpcOpenEventHandle(&event_, handle), "cudaIpcOpenEventHandle");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  // What the stream gets from now on comes after it.
  void precede(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
  // Waits on the host.
  void synchronize() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  bool has_come() const { return cudaEventQuery(event_) != cudaErrorNotReady; }
  // By which another process opens it; made with cudaEventInterprocess.
  cudaIpcEventHandle_t handle() const {
    cudaIpcEventHandle_t handle;
    check(cudaIpcGetEventHandle(&handle, event_), "cudaIpcGetEventHandle");
    return handle;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// Memory of the device.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { check(cudaMalloc(&memory_, bytes), "cudaMalloc"); }
  ~DeviceMemory() { cudaFree(memory_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(memory_); }

 private:
  void* memory_ = nullptr;
};

inline std::shared_ptr<std::byte> device_memory(std::size_t bytes) {
  const auto memory = std::make_shared<DeviceMemory>(bytes);
  return {memory, memory->data()};
}

inline void synchronize(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }

// Makes memory of the host known to CUDA, so that copies need not wait for the host.
class Registered {
 public:
  Registered(void* memory, std::size_t bytes) : memory_(bytes == 0 ? nullptr : memory) {
    if (memory_ != nullptr) check(cudaHostRegister(memory_, bytes, cudaHostRegisterDefault), "cudaHostRegister");
  }
  ~Registered() {
    if (memory_ != nullptr) cudaHostUnregister(memory_);
  }
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;

 private:
  void* memory_;
};

}  // namespace fastseq::cuda
