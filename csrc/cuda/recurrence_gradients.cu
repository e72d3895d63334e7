// Plain tiled products: a block of 16 x 16 threads computes a tile of 64 x 32 sums, each thread 4 x 2 of them.
#include "cuda/recurrence_gradients.h"

#include <algorithm>
#include <type_traits>

#include "core/base/dispatch.h"
#include "cuda/launch.h"
#include "cuda/recurrence_steps.h"

namespace fastseq::cuda {

namespace {

constexpr int kSide = 16;  // of a block
constexpr int kThreads = kSide * kSide;
constexpr int kTileRows = 64;
constexpr int kTileColumns = 32;
constexpr int kDepth = 32;  // of what is in shared memory at a time
constexpr int kThreadRows = kTileRows / kSide;
constexpr int kThreadColumns = kTileColumns / kSide;

// Weights' gradients are summed up by enough blocks to fill a GPU, each of them over enough rows to be worth it.
constexpr std::int64_t kRowsOfPart = 128;
constexpr std::int64_t kEnoughBlocks = 1024;

constexpr std::int64_t pieces(std::int64_t count, std::int64_t size) { return (count + size - 1) / size; }

template <class Acc>
using Sums = Acc[kThreadRows][kThreadColumns];

// Adds products over depth [first, last): of a(depth, row) and b(depth, column) of the tile. Neighbouring threads read
// neighbouring rows of a, or, if kDeep, neighbouring places in its depth; and neighbouring columns of b.
template <bool kDeep, class Acc, class A, class B>
__device__ void add_products(Sums<Acc>& sums, std::int64_t first, std::int64_t last, const A& a, const B& b) {
  __shared__ Acc a_tile[kDepth][kTileRows + 1];
  __shared__ Acc b_tile[kDepth][kTileColumns + 1];
  const int thread = static_cast<int>(threadIdx.x);
  for (std::int64_t from = first; from < last; from += kDepth) {
    for (int i = thread; i < kDepth * kTileRows; i += kThreads) {
      const int depth = kDeep ? i % kDepth : i / kTileRows;
      const int row = kDeep ? i / kDepth : i % kTileRows;
      a_tile[depth][row] = from + depth < last ? a(from + depth, row) : Acc(0);
    }
    for (int i = thread; i < kDepth * kTileColumns; i += kThreads) {
      const int depth = i / kTileColumns;
      b_tile[depth][i % kTileColumns] = from + depth < last ? b(from + depth, i % kTileColumns) : Acc(0);
    }
    __syncthreads();
    for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadColumns; ++j) {
          sums[i][j] += a_tile[depth][thread / kSide + i * kSide] * b_tile[depth][thread % kSide + j * kSide];
        }
      }
    }
    __syncthreads();
  }
}

// Calls fn(row, column, sum) for the sums of a thread.
template <class Acc, class Fn>
__device__ void for_sums(const Sums<Acc>& sums, const Fn& fn) {
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadColumns; ++j) {
      fn(static_cast<int>(threadIdx.x) / kSide + i * kSide, static_cast<int>(threadIdx.x) % kSide + j * kSide,
         sums[i][j]);
    }
  }
}

// Gradients of the sums that belong to a matrix of weights: column j is its row j. A GRU has sums n (of the input), r,
// z, n (of the hidden state), and gates r, z, n; other cells have their gates.
template <class Acc>
struct GateGradients {
  const Acc* d;
  std::int64_t row;  // elements
  int columns;
  int shift;
  int wrap;

  GateGradients(const RecurrenceShape& s, const void* scratch, bool of_input)
      : d(static_cast<const Acc*>(scratch)),
        row(sum_count(s.cell) * s.hidden),
        columns(static_cast<int>(gate_count(s.cell) * s.hidden)),
        shift(s.cell == Cell::kGru ? static_cast<int>(s.hidden) : 0),
        wrap(of_input ? columns : columns + shift) {}

  __device__ Acc at(std::int64_t i, int j) const {
    if (j >= columns) return Acc(0);
    const int sum = j + shift < wrap ? j + shift : j + shift - wrap;
    return d[i * row + sum];
  }

  static std::int64_t sum_count(Cell cell) { return cell == Cell::kGru ? 4 : gate_count(cell); }
};

// dx = d w_ih.
template <class T>
__global__ void __launch_bounds__(kThreads)
    input_gradients_kernel(RecurrenceShape s, GateGradients<Compute<T>> d, const T* w_ih, T* dx) {
  using Acc = Compute<T>;
  const std::int64_t count = s.steps * s.sequences;
  const std::int64_t top = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
  const std::int64_t left = static_cast<std::int64_t>(blockIdx.y) * kTileColumns;
  Sums<Acc> sums = {};
  add_products<true>(
      sums, 0, d.columns,
      [&](std::int64_t j, int row) { return top + row < count ? d.at(top + row, static_cast<int>(j)) : Acc(0); },
      [&](std::int64_t j, int column) {
        return left + column < s.inputs ? static_cast<Acc>(w_ih[j * s.inputs + left + column]) : Acc(0);
      });
  for_sums<Acc>(sums, [&](int row, int column, Acc sum) {
    if (top + row < count && left + column < s.inputs) {
      dx[(top + row) * s.inputs + left + column] = static_cast<T>(sum);
    }
  });
}

// What the weights' gradients have of a row of d, that is, of a sequence at a step: its input, or its state before,
// and then 1, for the biases.
template <class T>
struct Operand {
  using Acc = Compute<T>;
  RecurrenceShape s;
  RecurrenceInputs in;
  const T* y;
  Steps steps;

  __device__ Operand(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const void* outputs)
      : s(shape), in(inputs), y(static_cast<const T*>(outputs)), steps(shape, inputs) {}

  __device__ Acc input(std::int64_t i, std::int64_t feature) const {
    if (feature >= s.inputs) return feature == s.inputs ? Acc(1) : Acc(0);
    const std::int64_t t = step(i);
    const std::int64_t n = i - t * s.sequences;
    if (t >= steps.length(n)) return Acc(0);  // it may be anything, such as NaN
    return static_cast<Acc>(static_cast<const T*>(in.x)[t * in.x_step + n * in.x_sequence + feature]);
  }

  __device__ Acc state(std::int64_t i, std::int64_t unit) const {
    if (unit >= s.hidden) return unit == s.hidden ? Acc(1) : Acc(0);
    const std::int64_t t = step(i);
    const std::int64_t n = i - t * s.sequences;
    const std::int64_t length = steps.length(n);
    if (t >= length) return Acc(0);
    const std::int64_t place = steps.at(t, length);
    if (place == 0) return static_cast<Acc>(static_cast<const T*>(in.h0)[n * s.hidden + unit]);
    return static_cast<Acc>(y[(steps.at(place - 1, length) * s.sequences + n) * s.hidden + unit]);
  }

 private:
  // i / sequences; several times as quick in 32 bits.
  __device__ std::int64_t step(std::int64_t i) const {
    if ((i | s.sequences) >> 32 == 0) return static_cast<unsigned>(i) / static_cast<unsigned>(s.sequences);
    return i / s.sequences;
  }
};

// How the gradients of w_ih and b_ih, then of w_hh and b_hh, are cut into tiles and parts. partial: [part][row of the
// weights][inputs + 1 + hidden + 1].
struct Parts {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t input_tiles;
  std::int64_t tiles;  // in a row
  std::int64_t count;
  std::int64_t size;  // rows of d

  explicit Parts(const RecurrenceShape& s)
      : rows(gate_count(s.cell) * s.hidden),
        columns(s.inputs + s.hidden + 2),
        input_tiles(pieces(s.inputs + 1, kTileColumns)),
        tiles(input_tiles + pieces(s.hidden + 1, kTileColumns)),
        count(std::clamp<std::int64_t>(kEnoughBlocks / (tiles * pieces(rows, kTileRows)), 1,
                                       std::max<std::int64_t>(pieces(s.steps * s.sequences, kRowsOfPart), 1))),
        size(pieces(s.steps * s.sequences, count)) {}
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    partial_gradients_kernel(RecurrenceShape s, RecurrenceInputs in, const void* y, Parts parts,
                             GateGradients<Compute<T>> d_input, GateGradients<Compute<T>> d_hidden,
                             Compute<T>* partial) {
  using Acc = Compute<T>;
  const Operand<T> operand(s, in, y);
  const std::int64_t block = blockIdx.x;
  const bool of_input = block < parts.input_tiles;
  const int top = static_cast<int>(blockIdx.y) * kTileRows;
  const std::int64_t left = (block - (of_input ? 0 : parts.input_tiles)) * kTileColumns;
  const std::int64_t first = blockIdx.z * parts.size;
  const std::int64_t all = s.steps * s.sequences;
  const std::int64_t last = first + parts.size < all ? first + parts.size : all;
  const GateGradients<Acc>& d = of_input ? d_input : d_hidden;
  Sums<Acc> sums = {};
  add_products<false>(
      sums, first, last, [&](std::int64_t i, int row) { return d.at(i, top + row); },
      [&](std::int64_t i, int column) {
        return of_input ? operand.input(i, left + column) : operand.state(i, left + column);
      });
  const std::int64_t begin = of_input ? 0 : s.inputs + 1;
  const std::int64_t end = of_input ? s.inputs + 1 : parts.columns;
  for_sums<Acc>(sums, [&](int row, int column, Acc sum) {
    const std::int64_t to = begin + left + column;
    if (top + row < parts.rows && to < end) partial[(blockIdx.z * parts.rows + top + row) * parts.columns + to] = sum;
  });
}

// Adds up the parts, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(RecurrenceShape s, RecurrenceGradients g, Parts parts, const Compute<T>* partial) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= parts.rows * parts.columns) return;
  Compute<T> sum = 0;
  for (std::int64_t p = 0; p < parts.count; ++p) sum += partial[p * parts.rows * parts.columns + i];
  const std::int64_t row = i / parts.columns;
  const std::int64_t column = i % parts.columns;
  const auto write = [&](void* to, std::int64_t at) {
    if (to != nullptr) static_cast<T*>(to)[at] = static_cast<T>(sum);
  };
  if (column < s.inputs) {
    write(g.dw_ih, row * s.inputs + column);
  } else if (column == s.inputs) {
    write(g.db_ih, row);
  } else if (column < s.inputs + 1 + s.hidden) {
    write(g.dw_hh, row * s.hidden + column - s.inputs - 1);
  } else {
    write(g.db_hh, row);
  }
}

}  // namespace

std::int64_t d_numel(const RecurrenceShape& s) {
  return s.steps * s.sequences * GateGradients<float>::sum_count(s.cell) * s.hidden;
}

std::int64_t partial_numel(const RecurrenceShape& s) {
  const Parts parts(s);
  return parts.count * parts.rows * parts.columns;
}

void input_gradients(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g,
                     const void* scratch, cudaStream_t stream) {
  const std::int64_t count = s.steps * s.sequences;
  if (g.dx == nullptr || count == 0 || s.inputs == 0) return;
  const dim3 grid(static_cast<unsigned>(pieces(count, kTileRows)),
                  static_cast<unsigned>(pieces(s.inputs, kTileColumns)));
  dispatch(s.dtype, [&]<class Host>(Type<Host>) {
    using T = DeviceType<Host>::type;
    start("input_gradients_kernel", input_gradients_kernel<T>, grid, kThreads, 0, stream, s,
          GateGradients<Compute<T>>(s, scratch, true), static_cast<const T*>(in.w_ih), static_cast<T*>(g.dx));
  });
}

void weight_gradients(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g, void* scratch,
                      cudaStream_t stream) {
  if (g.dw_hh == nullptr) return;  // dw_ih may be empty, and null for that
  const Parts parts(s);
  const dim3 grid(static_cast<unsigned>(parts.tiles), static_cast<unsigned>(pieces(parts.rows, kTileRows)),
                  static_cast<unsigned>(parts.count));
  const auto sums = static_cast<unsigned>(pieces(parts.rows * parts.columns, kThreads));
  dispatch(s.dtype, [&]<class Host>(Type<Host>) {
    using T = DeviceType<Host>::type;
    using Acc = Compute<T>;
    Acc* partial = static_cast<Acc*>(scratch) + d_numel(s);
    start("partial_gradients_kernel", partial_gradients_kernel<T>, grid, kThreads, 0, stream, s, in, g.y, parts,
          GateGradients<Acc>(s, scratch, true), GateGradients<Acc>(s, scratch, false), partial);
    start("add_partials_kernel", add_partials_kernel<T>, sums, kThreads, 0, stream, s, g, parts, partial);
  });
}

}  // namespace fastseq::cuda
