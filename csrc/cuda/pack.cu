// Many small copies in few launches: a launch takes a table of tensors by value, the way of NVIDIA apex's
// multi_tensor_apply. Each row of the grid is a tensor, the blocks of a row share its elements.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "cuda/launch.h"
#include "cuda/pack.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr std::int64_t kBytesPerThread = 4 * kVectorBytes;
constexpr std::int64_t kMaxBlocksPerTensor = 2048;  // beyond that, blocks take more than one turn

// to[i] = scale * from[i] for i < numel, then `zeros` zeros.
struct Copy {
  const void* from;
  void* to;
  std::int64_t numel;
  std::int64_t zeros;
};

// Kernel arguments may take 4 KB on every device.
constexpr std::size_t kMaxCopies = 4000 / sizeof(Copy);
struct CopyTable {
  Copy copies[kMaxCopies];
};

template <class T>
__device__ T scaled(T value, Compute<T> scale) {
  return static_cast<T>(static_cast<Compute<T>>(value) * scale);
}

__device__ bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

template <class T>
__global__ void copy_scaled_kernel(const __grid_constant__ CopyTable table, Compute<T> scale) {
  constexpr int kItems = kVectorBytes / sizeof(T);
  const Copy& copy = table.copies[blockIdx.y];
  const T* from = static_cast<const T*>(copy.from);
  T* to = static_cast<T*>(copy.to);
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t threads = static_cast<std::int64_t>(gridDim.x) * blockDim.x;

  std::int64_t done = 0;  // elements that go as whole vectors
  if (is_vector_aligned(from) && is_vector_aligned(to)) {
    const std::int64_t vectors = copy.numel / kItems;
    for (std::int64_t i = thread; i < vectors; i += threads) {
      uint4 raw = reinterpret_cast<const uint4*>(from)[i];
      T* items = reinterpret_cast<T*>(&raw);
#pragma unroll
      for (int j = 0; j < kItems; ++j) items[j] = scaled(items[j], scale);
      reinterpret_cast<uint4*>(to)[i] = raw;
    }
    done = vectors * kItems;
  }
  for (std::int64_t i = done + thread; i < copy.numel; i += threads) to[i] = scaled(from[i], scale);
  for (std::int64_t i = thread; i < copy.zeros; i += threads) to[copy.numel + i] = static_cast<T>(0.0F);
}

template <class T>
void launch(const std::vector<Copy>& copies, double scale, cudaStream_t stream) {
  for (std::size_t first = 0; first < copies.size(); first += kMaxCopies) {
    const std::size_t count = std::min(kMaxCopies, copies.size() - first);
    CopyTable table{};
    std::int64_t longest = 1;
    for (std::size_t i = 0; i < count; ++i) {
      table.copies[i] = copies[first + i];
      longest = std::max(longest, copies[first + i].numel);
    }
    constexpr std::int64_t kItemsPerBlock = kThreads * kBytesPerThread / static_cast<std::int64_t>(sizeof(T));
    const std::int64_t blocks = std::min((longest + kItemsPerBlock - 1) / kItemsPerBlock, kMaxBlocksPerTensor);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(count));
    copy_scaled_kernel<T><<<grid, kThreads, 0, stream>>>(table, static_cast<Compute<T>>(scale));
    check_launch("copy_scaled_kernel");
  }
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
    copies.push_back({tensors[i], static_cast<std::byte*>(flat) + layout.offsets[i] * item, numels[i],
                      end - layout.offsets[i] - numels[i]});
  }
  launch(copies, dtype, scale, stream);
}

void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, cudaStream_t stream) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::vector<Copy> copies;
  copies.reserve(tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    copies.push_back({static_cast<const std::byte*>(flat) + layout.offsets[i] * item, tensors[i], numels[i], 0});
  }
  launch(copies, dtype, scale, stream);
}

}  // namespace fastseq::cuda
