// Memory of the device for tests.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastseq::testing {

inline void must(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(code));
}

// `shift` elements lie before it: not aligned unless that is 0.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t size, std::size_t shift = 0) : size_(size), shift_(shift) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, (size + shift) * sizeof(T)));
    memory_ = static_cast<T*>(memory);
  }
  explicit DeviceBuffer(const std::vector<T>& values, std::size_t shift = 0) : DeviceBuffer(values.size(), shift) {
    must(cudaMemcpyAsync(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice, nullptr));
    must(cudaStreamSynchronize(nullptr));
  }
  ~DeviceBuffer() { cudaFree(memory_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() const { return memory_ + shift_; }

  // What is there when the stream has come so far.
  std::vector<T> read(cudaStream_t stream) const {
    std::vector<T> values(size_);
    must(cudaMemcpyAsync(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost, stream));
    must(cudaStreamSynchronize(stream));
    return values;
  }

 private:
  T* memory_ = nullptr;
  std::size_t size_;
  std::size_t shift_;
};

class TestStream {
 public:
  TestStream() { must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~TestStream() { cudaStreamDestroy(stream_); }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT(google-explicit-constructor): it is one

 private:
  cudaStream_t stream_ = nullptr;
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  const auto* left = reinterpret_cast<const unsigned char*>(a.data());
  const auto* right = reinterpret_cast<const unsigned char*>(b.data());
  for (std::size_t i = 0; i < a.size() * sizeof(T); ++i) {
    if (left[i] != right[i]) return false;
  }
  return true;
}

}  // namespace fastseq::testing
