// Two kernels: one block for many small matrices, and a plain tiled one for everything else.
#include <algorithm>
#include <cstdint>

#include "cuda/bmm_kernels.h"
#include "cuda/launch.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSmall = 16;                        // largest side of a small matrix: an output fits a block's threads
constexpr std::int64_t kSharedBytes = 32 * 1024;  // per block: below every device's limit; several blocks fit
constexpr int kTile = 16;
static_assert(2 * kSmall * kSmall * sizeof(double) <= kSharedBytes);
constexpr std::int64_t kMaxBlocks = 1 << 12;  // several times what any GPU runs at once
constexpr std::int64_t kMaxGridYZ = 65535;

template <class T>
struct Operand {
  const T* data;
  std::int64_t batch;
  std::int64_t row;
  std::int64_t column;

  explicit Operand(const MatrixBatch& m)
      : data(static_cast<const T*>(m.data)), batch(m.batch_stride), row(m.row_stride), column(m.column_stride) {}

  __device__ Compute<T> at(std::int64_t i, std::int64_t r, std::int64_t q) const {
    return static_cast<Compute<T>>(data[i * batch + r * row + q * column]);
  }
};

// Each block takes `per_block` neighbouring matrices at a time: it copies their operands to shared memory, in
// contiguous order, then each thread computes one element of c.
template <class T>
__global__ void small_bmm_kernel(BmmShape s, Operand<T> a, Operand<T> b, T* c, int per_block) {
  using Acc = Compute<T>;
  const int m = static_cast<int>(s.m);
  const int k = static_cast<int>(s.k);
  const int n = static_cast<int>(s.n);
  Acc* a_tile = static_cast<Acc*>(dynamic_shared());  // (per_block, m, k)
  Acc* b_tile = a_tile + per_block * m * k;           // (per_block, k, n)

  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * per_block;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block; first < s.batch; first += step) {
    const int count = static_cast<int>(s.batch - first < per_block ? s.batch - first : per_block);
    for (int i = threadIdx.x; i < count * m * k; i += blockDim.x) {
      a_tile[i] = a.at(first + i / (m * k), i % (m * k) / k, i % k);
    }
    for (int i = threadIdx.x; i < count * k * n; i += blockDim.x) {
      b_tile[i] = b.at(first + i / (k * n), i % (k * n) / n, i % n);
    }
    __syncthreads();
    if (const int i = threadIdx.x; i < count * m * n) {
      const int matrix = i / (m * n);
      const Acc* a_row = a_tile + matrix * m * k + i % (m * n) / n * k;
      const Acc* b_column = b_tile + matrix * k * n + i % n;
      Acc sum = 0;
      for (int q = 0; q < k; ++q) sum += a_row[q] * b_column[q * n];
      c[first * m * n + i] = static_cast<T>(sum);
    }
    __syncthreads();
  }
}

// Blocks of kTile x kTile threads compute tiles of c; the grid strides over rows and over the batch.
template <class T>
__global__ void tiled_bmm_kernel(BmmShape s, Operand<T> a, Operand<T> b, T* c) {
  using Acc = Compute<T>;
  __shared__ Acc a_tile[kTile][kTile];
  __shared__ Acc b_tile[kTile][kTile + 1];
  const int x = threadIdx.x;
  const int y = threadIdx.y;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kTile + x;
  for (std::int64_t i = blockIdx.z; i < s.batch; i += gridDim.z) {
    for (std::int64_t top = static_cast<std::int64_t>(blockIdx.y) * kTile; top < s.m;
         top += static_cast<std::int64_t>(gridDim.y) * kTile) {
      const std::int64_t row = top + y;
      Acc sum = 0;
      for (std::int64_t first = 0; first < s.k; first += kTile) {
        a_tile[y][x] = row < s.m && first + x < s.k ? a.at(i, row, first + x) : Acc(0);
        b_tile[y][x] = first + y < s.k && column < s.n ? b.at(i, first + y, column) : Acc(0);
        __syncthreads();
        for (int q = 0; q < kTile; ++q) sum += a_tile[y][q] * b_tile[q][x];
        __syncthreads();
      }
      if (row < s.m && column < s.n) c[(i * s.m + row) * s.n + column] = static_cast<T>(sum);
    }
  }
}

template <class T>
void launch(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, cudaStream_t stream) {
  if (s.m <= kSmall && s.k <= kSmall && s.n <= kSmall) {
    const std::int64_t matrix_bytes = (s.m + s.n) * s.k * static_cast<std::int64_t>(sizeof(Compute<T>));
    const std::int64_t fitting = kSharedBytes / std::max<std::int64_t>(matrix_bytes, 1);
    const int per_block = static_cast<int>(std::min<std::int64_t>(kThreads / (s.m * s.n), fitting));
    const auto bytes = static_cast<std::size_t>(per_block * matrix_bytes);
    const std::int64_t blocks = std::min((s.batch + per_block - 1) / per_block, kMaxBlocks);
    start("small_bmm_kernel", small_bmm_kernel<T>, static_cast<unsigned>(blocks), kThreads, bytes, stream, s, a, b, c,
          per_block);
    return;
  }
  const dim3 grid(static_cast<unsigned>((s.n + kTile - 1) / kTile),
                  static_cast<unsigned>(std::min((s.m + kTile - 1) / kTile, kMaxGridYZ)),
                  static_cast<unsigned>(std::min(s.batch, kMaxGridYZ)));
  start("tiled_bmm_kernel", tiled_bmm_kernel<T>, grid, dim3(kTile, kTile), 0, stream, s, a, b, c);
}

}  // namespace

void bmm(const BmmShape& shape, DType dtype, const MatrixBatch& a, const MatrixBatch& b, void* c, cudaStream_t stream) {
  if (shape.batch == 0 || shape.m == 0 || shape.n == 0) return;
  dispatch(dtype, [&]<class T>(Type<T>) {
    using Device = typename DeviceType<T>::type;
    launch(shape, Operand<Device>(a), Operand<Device>(b), static_cast<Device*>(c), stream);
  });
}

}  // namespace fastseq::cuda
