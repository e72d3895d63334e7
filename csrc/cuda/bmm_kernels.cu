// Two kernels: one block for many small matrices, and a plain tiled one for everything else.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/bmm_kernels.h"
#include "cuda/launch.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kSmall = 16;                        // largest side of a small matrix: an output fits a block's threads
constexpr int kUnrolled = 8;                      // largest k for which there is a kernel of its own
constexpr int kMaxDepth = 64;                     // CUDA's limit of blockDim.z
constexpr std::int64_t kSharedBytes = 32 * 1024;  // per block: below every device's limit; several blocks fit
constexpr int kTile = 16;
static_assert(kTile * kTile == kThreads);
static_assert(kSmall * kSmall <= kThreads && 2 * kSmall * kSmall * sizeof(double) <= kSharedBytes);
// Limits of a grid: about what a large GPU runs at once. CUDA's limit of y and z is 65535.
constexpr std::int64_t kMaxBlocks = 1 << 11;
constexpr std::int64_t kMaxTiles = 1 << 10;  // in y and z

template <class T>
struct Operand {
  const T* data;
  std::int64_t batch;
  std::int64_t row;
  std::int64_t column;

  explicit Operand(const MatrixBatch& m)
      : data(static_cast<const T*>(m.data)), batch(m.batch_stride), row(m.row_stride), column(m.column_stride) {}

  // Whether neighbours in memory are neighbours in a row, not in a column.
  __host__ __device__ bool by_rows() const { return column <= row; }
  __device__ Compute<T> at(std::int64_t i, std::int64_t r, std::int64_t q) const {
    return static_cast<Compute<T>>(data[i * batch + r * row + q * column]);
  }
};

// Small matrices, as lines in the order of memory: rows or columns.
template <class T>
struct Lines {
  const T* data;
  std::int64_t batch;         // stride
  std::int64_t line;          // stride
  std::int64_t item;          // stride
  int count;                  // lines of a matrix
  int length;                 // items of a line
  bool dense;                 // nothing lies between matrices, lines, or items
  int row_step, column_step;  // to the next element of a column or a row, where lines follow each other

  Lines(const Operand<T>& m, std::int64_t rows, std::int64_t columns) : data(m.data), batch(m.batch) {
    const bool by_rows = rows == 1 || columns == 1 || m.by_rows();  // strides of one row or column mean nothing
    line = by_rows ? m.row : m.column;
    item = by_rows ? m.column : m.row;
    count = static_cast<int>(by_rows ? rows : columns);
    length = static_cast<int>(by_rows ? columns : rows);
    dense = (length == 1 || item == 1) && (count == 1 || line == length) && batch == rows * columns;
    row_step = by_rows ? length : 1;
    column_step = by_rows ? 1 : length;
  }
  __host__ __device__ int numel() const { return count * length; }
};

// Copies neighbouring matrices to shared memory, without gaps. Neighbouring threads load neighbouring elements.
template <class T>
__device__ void load_lines(const Lines<T>& from, std::int64_t first, int matrices, int thread, Compute<T>* tile) {
  if (from.dense) {
    const T* data = from.data + first * from.numel();
    const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    for (int i = thread; i < matrices * from.numel(); i += threads) tile[i] = static_cast<Compute<T>>(data[i]);
    return;
  }
  const int matrix = static_cast<int>(threadIdx.z);
  if (matrix >= matrices) return;
  const T* data = from.data + (first + matrix) * from.batch;
  tile += matrix * from.numel();
  for (int j = static_cast<int>(threadIdx.y); j < from.count; j += static_cast<int>(blockDim.y)) {
    for (int i = static_cast<int>(threadIdx.x); i < from.length; i += static_cast<int>(blockDim.x)) {
      tile[j * from.length + i] = static_cast<Compute<T>>(data[j * from.line + i * from.item]);
    }
  }
}

// Blocks of n x m x matrices threads take neighbouring matrices: they copy them to shared memory, then each thread
// computes one element of c. Its place in the block says which, without divisions. kInner is k, or 0 for any k.
template <class T, int kInner>
__global__ void __launch_bounds__(kThreads) small_bmm_kernel(std::int64_t batch, int k, Lines<T> a, Lines<T> b, T* c) {
  using Acc = Compute<T>;
  const int inner = kInner == 0 ? k : kInner;
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const int z = static_cast<int>(threadIdx.z);
  const int numel = static_cast<int>(blockDim.y * blockDim.x);  // of a product
  const int thread = z * numel + y * static_cast<int>(blockDim.x) + x;
  const int per_block = static_cast<int>(blockDim.z);
  Acc* a_tile = static_cast<Acc*>(dynamic_shared());
  Acc* b_tile = a_tile + per_block * a.numel();
  const Acc* a_row = a_tile + z * a.numel() + y * a.row_step;
  const Acc* b_column = b_tile + z * b.numel() + x * b.column_step;

  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * per_block;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * per_block; first < batch; first += step) {
    const int matrices = static_cast<int>(batch - first < per_block ? batch - first : per_block);
    load_lines(a, first, matrices, thread, a_tile);
    load_lines(b, first, matrices, thread, b_tile);
    __syncthreads();
    if (z < matrices) {
      Acc sum = 0;
#pragma unroll
      for (int q = 0; q < inner; ++q) sum += a_row[q * a.column_step] * b_column[q * b.row_step];
      c[first * numel + thread] = static_cast<T>(sum);
    }
    __syncthreads();
  }
}

// Element (y, x) or (x, y) of a tile of kTile x kTile: neighbouring threads load neighbouring elements. Zero outside.
template <class T>
__device__ void load_tile(const Operand<T>& from, std::int64_t i, std::int64_t top, std::int64_t left,
                          std::int64_t rows, std::int64_t columns, Compute<T> (&tile)[kTile][kTile + 1]) {
  const unsigned r = from.by_rows() ? threadIdx.y : threadIdx.x;
  const unsigned q = from.by_rows() ? threadIdx.x : threadIdx.y;
  tile[r][q] = top + r < rows && left + q < columns ? from.at(i, top + r, left + q) : Compute<T>(0);
}

// Blocks of kTile x kTile threads compute tiles of c; the grid strides over rows and over the batch.
template <class T>
__global__ void __launch_bounds__(kThreads) tiled_bmm_kernel(BmmShape s, Operand<T> a, Operand<T> b, T* c) {
  using Acc = Compute<T>;
  __shared__ Acc a_tile[kTile][kTile + 1];
  __shared__ Acc b_tile[kTile][kTile + 1];
  const int x = static_cast<int>(threadIdx.x);
  const int y = static_cast<int>(threadIdx.y);
  const std::int64_t left = static_cast<std::int64_t>(blockIdx.x) * kTile;
  for (std::int64_t i = blockIdx.z; i < s.batch; i += gridDim.z) {
    for (std::int64_t top = static_cast<std::int64_t>(blockIdx.y) * kTile; top < s.m;
         top += static_cast<std::int64_t>(gridDim.y) * kTile) {
      Acc sum = 0;
      for (std::int64_t first = 0; first < s.k; first += kTile) {
        load_tile(a, i, top, first, s.m, s.k, a_tile);
        load_tile(b, i, first, left, s.k, s.n, b_tile);
        __syncthreads();
        for (int q = 0; q < kTile; ++q) sum += a_tile[y][q] * b_tile[q][x];
        __syncthreads();
      }
      const std::int64_t row = top + y;
      const std::int64_t column = left + x;
      if (row < s.m && column < s.n) c[(i * s.m + row) * s.n + column] = static_cast<T>(sum);
    }
  }
}

// The kernels for k = 0 (any), 1, ..., kUnrolled.
template <class T, int... kInner>
auto small_kernel(std::int64_t k, std::integer_sequence<int, kInner...> /*inner*/) {
  constexpr std::array kKernels{&small_bmm_kernel<T, kInner>...};
  return kKernels[k <= kUnrolled ? static_cast<std::size_t>(k) : 0];
}

template <class T>
void launch_small(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, cudaStream_t stream) {
  const std::int64_t matrix_bytes = (s.m + s.n) * s.k * static_cast<std::int64_t>(sizeof(Compute<T>));
  const std::int64_t fitting = kSharedBytes / std::max<std::int64_t>(matrix_bytes, 1);
  const std::int64_t per_block = std::min({kThreads / (s.m * s.n), std::int64_t{kMaxDepth}, fitting});
  const std::int64_t blocks = std::min((s.batch + per_block - 1) / per_block, kMaxBlocks);
  const dim3 threads(static_cast<unsigned>(s.n), static_cast<unsigned>(s.m), static_cast<unsigned>(per_block));
  const auto kernel = small_kernel<T>(s.k, std::make_integer_sequence<int, kUnrolled + 1>());
  start("small_bmm_kernel", kernel, static_cast<unsigned>(blocks), threads,
        static_cast<std::size_t>(per_block * matrix_bytes), stream, s.batch, static_cast<int>(s.k),
        Lines<T>(a, s.m, s.k), Lines<T>(b, s.k, s.n), c);
}

template <class T>
void launch(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, cudaStream_t stream) {
  if (s.m <= kSmall && s.k <= kSmall && s.n <= kSmall) return launch_small(s, a, b, c, stream);
  const dim3 grid(static_cast<unsigned>((s.n + kTile - 1) / kTile),
                  static_cast<unsigned>(std::min((s.m + kTile - 1) / kTile, kMaxTiles)),
                  static_cast<unsigned>(std::min(s.batch, kMaxTiles)));
  start("tiled_bmm_kernel", tiled_bmm_kernel<T>, grid, dim3(kTile, kTile), 0, stream, s, a, b, c);
}

}  // namespace

void bmm(const BmmShape& shape, DType dtype, const MatrixBatch& a, const MatrixBatch& b, void* c, cudaStream_t stream) {
  if (shape.batch == 0 || shape.m == 0 || shape.n == 0) return;
  dispatch(dtype, [&]<class T>(Type<T>) {
    using Device = DeviceType<T>::type;
    launch(shape, Operand<Device>(a), Operand<Device>(b), static_cast<Device*>(c), stream);
  });
}

}  // namespace fastseq::cuda
