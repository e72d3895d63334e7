#include "cuda/pack_kernels.h"

#include <cstddef>
#include <type_traits>
#include <vector>

#include "core/base/dispatch.h"
#include "cuda/block.h"
#include "cuda/copy_table.h"
#include "cuda/launch.h"

namespace fastseq::cuda {

namespace {

constexpr int kItemsPerThread = 16;
constexpr std::int64_t kChunk = kThreads * kItemsPerThread;  // 4096 elements, as on the CPU

struct Facts {
  bool wanted;
  int bad = 0;
  double squares = 0;

  template <class T>
  __device__ void add(T value) {
    if (!wanted) return;
    const auto x = static_cast<Compute<T>>(value);
    squares += static_cast<double>(x) * static_cast<double>(x);
    bad += isfinite(x) ? 0 : 1;
  }
};

// A scale of 1 between equal types copies the bits, also of NaN, as on the CPU.
template <class To, class From, class Wide>
__device__ To scaled(From value, Wide scale) {
  if constexpr (std::is_same_v<From, To>) {
    if (scale == Wide(1)) return value;
  }
  return static_cast<To>(static_cast<Wide>(value) * scale);
}

// The first `vectors` vectors of a chunk. All loads come before all stores, because the compiler cannot know that they
// never overlap.
template <int kItems, class From, class To, class Wide>
__device__ void copy_vectors(const From* from, To* to, int vectors, Wide scale, Facts& facts) {
  constexpr int kVectors = kItemsPerThread / kItems;
  Items<From, kItems> raw[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * kThreads + static_cast<int>(threadIdx.x);
    if (i < vectors) raw[v] = reinterpret_cast<const Items<From, kItems>*>(from)[i];
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * kThreads + static_cast<int>(threadIdx.x);
    if (i >= vectors) break;
    Items<To, kItems> items;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      items.values[j] = scaled<To>(raw[v].values[j], scale);
      facts.add(items.values[j]);
    }
    reinterpret_cast<Items<To, kItems>*>(to)[i] = items;
  }
}

template <class T, int kItems>
__device__ bool is_aligned(const T* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % (sizeof(T) * kItems) == 0;
}

// Each block copies a chunk and, if wanted, writes (number of non-finite values, sum of squares) to scratch.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const __grid_constant__ CopyTable table, double factor, double* scratch) {
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  constexpr int kItems = kVectorBytes / static_cast<int>(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
  const auto scale = static_cast<Wide>(factor);
  const int index = find_copy(table, blockIdx.x);
  const Copy& copy = table.copies[index];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - table.first_chunk[index]) * kChunk;
  const From* from = static_cast<const From*>(copy.from) + begin;
  To* to = static_cast<To*>(copy.to) + begin;
  const auto items_until = [begin](std::int64_t last) {  // in this chunk
    const std::int64_t items = last - begin;
    return static_cast<int>(items < 0 ? 0 : (items < kChunk ? items : kChunk));
  };
  const int copied = items_until(copy.numel);
  const int end = items_until(copy.end);

  Facts facts{.wanted = scratch != nullptr};
  int done = 0;  // items that went as whole vectors; chunks are whole vectors, so they are aligned if their tensors are
  if (is_aligned<From, kItems>(from) && is_aligned<To, kItems>(to)) {
    copy_vectors<kItems>(from, to, copied / kItems, scale, facts);
    done = copied / kItems * kItems;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < copied; i += kThreads) {
    const To value = scaled<To>(from[i], scale);
    to[i] = value;
    facts.add(value);
  }
  for (int i = copied + static_cast<int>(threadIdx.x); i < end; i += kThreads) to[i] = static_cast<To>(0.0F);

  if (!facts.wanted) return;
  const double bad = block_sum(static_cast<double>(facts.bad));
  const double squares = block_sum(facts.squares);
  if (threadIdx.x == 0) {
    scratch[2 * blockIdx.x] = bad;
    scratch[2 * blockIdx.x + 1] = squares;
  }
}

// One block adds up the results of the others.
__global__ void __launch_bounds__(kThreads)
    add_facts_kernel(const double* scratch, std::int64_t chunks, double* facts) {
  double bad = 0;
  double squares = 0;
  for (std::int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    bad += scratch[2 * i];
    squares += scratch[2 * i + 1];
  }
  bad = block_sum(bad);
  squares = block_sum(squares);
  if (threadIdx.x == 0) {
    facts[0] = bad == 0 ? 1.0 : 0.0;
    facts[1] = squares;
  }
}

void launch(const std::vector<Copy>& copies, DType from_dtype, DType to_dtype, double scale, FactsOut out,
            cudaStream_t stream) {
  std::int64_t chunks = 0;
  dispatch(from_dtype, [&]<class From>(Type<From>) {
    dispatch(to_dtype, [&]<class To>(Type<To>) {
      for_tables(copies, kChunk, [&](const CopyTable& table, unsigned blocks) {
        double* scratch = out.facts == nullptr ? nullptr : out.scratch + 2 * chunks;
        start("pack_kernel", pack_kernel<typename DeviceType<From>::type, typename DeviceType<To>::type>, blocks,
              kThreads, 0, stream, table, scale, scratch);
        chunks += blocks;
      });
    });
  });
  if (out.facts == nullptr) return;
  start("add_facts_kernel", add_facts_kernel, 1, kThreads, 0, stream, out.scratch, chunks, out.facts);
}

}  // namespace

std::int64_t facts_scratch(std::span<const std::int64_t> numels, const FlatLayout& layout) {
  std::int64_t chunks = 0;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    const std::int64_t end = i + 1 < numels.size() ? layout.offsets[i + 1] : layout.numel;
    chunks += (end - layout.offsets[i] + kChunk - 1) / kChunk;
  }
  return 2 * chunks;
}

void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from_dtype,
          const FlatLayout& layout, DType to_dtype, double scale, void* flat, FactsOut out, cudaStream_t stream) {
  launch(copies_into(tensors, numels, layout, to_dtype, flat), from_dtype, to_dtype, scale, out, stream);
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
  launch(copies, dtype, dtype, scale, {}, stream);
}

}  // namespace fastseq::cuda
