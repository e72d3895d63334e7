// Many copies in few launches, the way of NVIDIA apex's multi_tensor_apply: a launch takes a table of tensors by value,
// and each of its blocks one chunk of one of them, so that a huge tensor beside tiny ones still fills the GPU.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kVectorsPerThread = 4;  // loads in flight at once
constexpr std::int64_t kChunkBytes = kThreads * kVectorsPerThread * kVectorBytes;

// to[i] = scale * from[i] for i < numel, then zeros up to `end`.
struct Copy {
  const void* from;
  void* to;
  std::int64_t numel;
  std::int64_t end;
};

// The chunks of copies[i] are the blocks [first_chunk[i], first_chunk[i + 1]) of the grid. 32 bits count them: 2^31
// chunks are more than any device's memory.
constexpr int kMaxCopies = 110;
struct CopyTable {
  Copy copies[kMaxCopies];
  unsigned first_chunk[kMaxCopies + 1];
  int count;
};
static_assert(sizeof(CopyTable) + sizeof(double) <= 4096);  // what kernel arguments may take on every device

// A scale of 1 copies the bits, those of a NaN included, as on the CPU.
template <class T>
__device__ T scaled(T value, Compute<T> scale) {
  return scale == Compute<T>(1) ? value : static_cast<T>(static_cast<Compute<T>>(value) * scale);
}

__device__ bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

// The copy that a block works on: the last one whose chunks start at or before it.
__device__ int find_copy(const CopyTable& table, unsigned block) {
  int low = 0;
  int high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= block ? low : high) = middle;
  }
  return low;
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
  const auto items_until = [begin](std::int64_t last) {  // of this chunk
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
  constexpr std::int64_t kChunk = kChunkBytes / static_cast<std::int64_t>(sizeof(T));
  CopyTable table{};
  const auto flush = [&] {
    const unsigned blocks = table.first_chunk[table.count];
    if (blocks == 0) return;
    copy_scaled_kernel<T><<<blocks, kThreads, 0, stream>>>(table, static_cast<Compute<T>>(scale));
    check_launch("copy_scaled_kernel");
    table.count = 0;
  };
  for (const Copy& copy : copies) {
    if (copy.end == 0) continue;
    const auto chunks = static_cast<unsigned>((copy.end + kChunk - 1) / kChunk);
    table.copies[table.count] = copy;
    table.first_chunk[table.count + 1] = table.first_chunk[table.count] + chunks;
    if (++table.count == kMaxCopies) flush();
  }
  flush();
}

void launch(const std::vector<Copy>& copies, DType dtype, double scale, cudaStream_t stream) {
  dispatch(dtype, [&]<class T>(Type<T>) { launch<typename DeviceType<T>::type>(copies, scale, stream); });
}

}  // namespace

void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, const FlatLayout& layout,
          DType dtype, double scale, void* flat, cudaStream_t stream) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::vector<Copy> copies;
  copies.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::int64_t end = i + 1 < tensors.size() ? layout.offsets[i + 1] : layout.numel;
    copies.push_back(
        {tensors[i], static_cast<std::byte*>(flat) + layout.offsets[i] * item, numels[i], end - layout.offsets[i]});
  }
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
