// Memory of a training step: kept from chunk to chunk.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastseq::step {

// Grows to the largest chunk. Vectors may be read beyond the end of what was asked for, by up to kSlack bytes.
template <class T>
class Buffer {
 public:
  // Returns room for this many elements; what was there before is lost if it grows.
  T* reserve(std::int64_t numel) {
    if (numel > numel_) {
      const std::size_t bytes = static_cast<std::size_t>(numel) * sizeof(T) + kSlack;
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
      std::fill_n(memory_.get(), bytes, std::byte{});
      numel_ = numel;
    }
    return data();
  }
  T* data() const { return reinterpret_cast<T*>(memory_.get()); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  static constexpr std::size_t kSlack = 64;
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::int64_t numel_ = -1;
};

}  // namespace fastseq::step
