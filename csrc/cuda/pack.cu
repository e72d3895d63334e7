#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/copy_table.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kVectorsPerThread = 4;  // loads in flight at once
constexpr std::int64_t kChunkBytes = kThreads * kVectorsPerThread * kVectorBytes;

// A scale of 1 copies the bits, also of NaN, as on the CPU.
template <class T>
__device__ T scaled(T value, Compute<T> scale) {
  return scale == Compute<T>(1) ? value : static_cast<T>(static_cast<Compute<T>>(value) * scale);
}

__device__ bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

// The first `vectors` vectors of a chunk, at most kVectorsPerThread for each thread. All loads come before all stores,
// because the compiler cannot know that they never overlap.
template <class T>
__device__ void copy_vectors(const T* from, T* to, int vectors, Compute<T> scale) {
  constexpr int kItems = kVectorBytes / sizeof(T);
  uint4 raw[kVectorsPerThread];
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int i = v * kThreads + static_cast<int>(threadIdx.x);
    if (i < vectors) raw[v] = reinterpret_cast<const uint4*>(from)[i];
  }
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int i = v * kThreads + static_cast<int>(threadIdx.x);
    if (i >= vectors) break;
    T* items = reinterpret_cast<T*>(&raw[v]);
#pragma unroll
    for (int j = 0; j < kItems; ++j) items[j] = scaled(items[j], scale);
    reinterpret_cast<uint4*>(to)[i] = raw[v];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_scaled_kernel(const __grid_constant__ CopyTable table, Compute<T> scale) {
  constexpr int kItems = kVectorBytes / sizeof(T);
  constexpr std::int64_t kChunk = kChunkBytes / static_cast<std::int64_t>(sizeof(T));
  const int index = find_copy(table, blockIdx.x);
  const Copy& copy = table.copies[index];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - table.first_chunk[index]) * kChunk;
  const T* from = static_cast<const T*>(copy.from) + begin;
  T* to = static_cast<T*>(copy.to) + begin;
  const auto items_until = [begin](std::int64_t last) {  // in this chunk
    const std::int64_t items = last - begin;
    return static_cast<int>(items < 0 ? 0 : (items < kChunk ? items : kChunk));
  };
  const int copied = items_until(copy.numel);
  const int end = items_until(copy.end);

  int done = 0;  // items that went as whole vectors; chunks are whole vectors, so they are aligned if their tensors are
  if (is_vector_aligned(from) && is_vector_aligned(to)) {
    copy_vectors(from, to, copied / kItems, scale);
    done = copied / kItems * kItems;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < copied; i += kThreads) to[i] = scaled(from[i], scale);
  for (int i = copied + static_cast<int>(threadIdx.x); i < end; i += kThreads) to[i] = static_cast<T>(0.0F);
}

template <class T>
void launch(const std::vector<Copy>& copies, double scale, cudaStream_t stream) {
  for_tables(copies, kChunkBytes / static_cast<std::int64_t>(sizeof(T)), [&](const CopyTable& table, unsigned blocks) {
    copy_scaled_kernel<T><<<blocks, kThreads, 0, stream>>>(table, static_cast<Compute<T>>(scale));
    check_launch("copy_scaled_kernel");
  });
}

void launch(const std::vector<Copy>& copies, DType dtype, double scale, cudaStream_t stream) {
  dispatch(dtype, [&]<class T>(Type<T>) { launch<typename DeviceType<T>::type>(copies, scale, stream); });
}

}  // namespace

void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, const FlatLayout& layout,
          DType dtype, double scale, void* flat, cudaStream_t stream) {
  const std::vector<Copy> copies = copies_into(tensors, numels, layout, dtype, flat);
  launch(copies, dtype, scale, stream);
}

void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, cudaStream_t stream) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::vector<Copy> copies;
  copies.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    copies.push_back(
        {static_cast<const std::byte*>(flat) + layout.offsets[i] * item, tensors[i], numels[i], numels[i]});
  }
  launch(copies, dtype, scale, stream);
}

}  // namespace fastseq::cuda
