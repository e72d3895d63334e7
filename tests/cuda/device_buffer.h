// Memory of the device for tests.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <vector>

#include "cuda/streams.h"

namespace fastseq::testing {

inline void must(cudaError_t code) { cuda::check(code, "CUDA"); }

// `shift` elements lie before it: not aligned unless that is 0.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t size, std::size_t shift = 0)
      : memory_((size + shift) * sizeof(T)), size_(size), shift_(shift) {}
  explicit DeviceBuffer(const std::vector<T>& values, std::size_t shift = 0) : DeviceBuffer(values.size(), shift) {
    must(cudaMemcpyAsync(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice, nullptr));
    must(cudaStreamSynchronize(nullptr));
  }

  T* data() const { return reinterpret_cast<T*>(memory_.data()) + shift_; }

  // What is there when the stream has come so far.
  std::vector<T> read(cudaStream_t stream) const {
    std::vector<T> values(size_);
    must(cudaMemcpyAsync(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost, stream));
    must(cudaStreamSynchronize(stream));
    return values;
  }

 private:
  cuda::DeviceMemory memory_;
  std::size_t size_;
  std::size_t shift_;
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
