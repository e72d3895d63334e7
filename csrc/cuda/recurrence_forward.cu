// All time steps of a small recurrent layer, in one launch.
#include <string>

#include "cuda/recurrence_block.h"

namespace fastseq::cuda {

namespace {

// Copies columns [first, first + count) of a matrix to shared memory, so that whole lines are read.
template <int kTile, class T, class Acc>
__device__ void copy_tile(const T* matrix, int rows, std::int64_t columns, std::int64_t first, int count, Acc* tile) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < rows * kTile; i += static_cast<int>(blockDim.x)) {
    const int row = i / kTile;
    const int column = i % kTile;
    if (column < count) tile[row * (kTile + 1) + column] = static_cast<Acc>(matrix[row * columns + first + column]);
  }
}

template <int kTile>
__device__ int tile_columns(std::int64_t first, std::int64_t columns) {
  const std::int64_t left = columns - first;
  return static_cast<int>(left < 0 ? 0 : (left < kTile ? left : kTile));
}

template <class T, class C, int kUnits>
struct Forward {
  using P = Plan<T, C, kUnits>;
  using Acc = Compute<T>;
  static constexpr int kSequences = P::kSequences;

  RecurrenceShape s;
  RecurrenceInputs in;
  Steps steps;
  int hidden;
  int rows;
  int row;    // the thread's
  Acc* h;     // shared: [unit][sequence], zero in padding
  Acc* x;     // [feature][step, sequence]
  Acc* sums;  // [sum][unit][sequence]
  Acc* tile;

  __device__ Forward(const RecurrenceShape& shape, const RecurrenceInputs& inputs)
      : s(shape),
        in(inputs),
        steps(shape, inputs),
        hidden(static_cast<int>(shape.hidden)),
        rows(P::rows(hidden)),
        row(static_cast<int>(threadIdx.x)),
        h(static_cast<Acc*>(dynamic_shared())),
        x(h + P::padded(hidden) * kSequences),
        sums(x + P::kTile * kAhead),
        tile(sums + C::kGates * hidden * kSequences) {}

  __device__ Acc bias(const void* biases) const {
    return biases != nullptr && row < rows ? static_cast<Acc>(static_cast<const T*>(biases)[row]) : Acc(0);
  }

  // The thread's weight in column c of the tile.
  __device__ Acc weight(int c) const { return tile[row * (P::kTile + 1) + c]; }

  // The row of w_hh.
  __device__ void load_weights(Acc (&w)[kUnits + 1]) const {
#pragma unroll
    for (int first = 0; first < kUnits; first += P::kTile) {
      const int count = tile_columns<P::kTile>(first, hidden);
      __syncthreads();
      copy_tile<P::kTile>(static_cast<const T*>(in.w_hh), rows, hidden, first, count, tile);
      __syncthreads();
#pragma unroll
      for (int c = 0; c < P::kTile; ++c) w[first + c] = c < count && row < rows ? weight(c) : Acc(0);
    }
  }

  // The inputs' products of the steps from the i-th on.
  __device__ void input_products(std::int64_t i, Acc bias, Acc (&sum)[kAhead]) const {
#pragma unroll
    for (Acc& each : sum) each = bias;
    for (std::int64_t first = 0; first < s.inputs; first += P::kTile) {
      const int count = tile_columns<P::kTile>(first, s.inputs);
      __syncthreads();
      copy_tile<P::kTile>(static_cast<const T*>(in.w_ih), rows, s.inputs, first, count, tile);
      for (int j = row; j < kAhead * P::kTile; j += static_cast<int>(blockDim.x)) {
        const int p = j / P::kTile;
        const int c = j % P::kTile;
        if (c < count) x[c * kAhead + p] = input(i + p / kSequences, p % kSequences, first + c);
      }
      __syncthreads();
      if (row >= rows) continue;
      for (int c = 0; c < count; ++c) {
        const Acc w = weight(c);
#pragma unroll
        for (int p = 0; p < kAhead; ++p) sum[p] += w * lane_at(x, c * kAhead + p);
      }
    }
  }

  // A feature at the i-th step of the block's sequence r; what does not count is not read.
  __device__ Acc input(std::int64_t i, int r, std::int64_t feature) const {
    const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kSequences + r;
    const std::int64_t length = steps.length(n);
    if (i >= length) return Acc(0);
    return static_cast<Acc>(static_cast<const T*>(in.x)[steps.at(i, length) * in.x_step + n * in.x_sequence + feature]);
  }

  // Adds the hidden state's products.
  __device__ void hidden_products(const Acc (&w)[kUnits + 1], Acc (&sum)[kSequences]) const {
    if constexpr (kUnits > 0) {
      Acc parts[kLanes<Acc>] = {};
#pragma unroll
      for (int q = 0; q < kUnits; ++q) {
        parts[q % kLanes<Acc>] += w[q] * lane_at(h, q);
      }
#pragma unroll
      for (int lane = 0; lane < kLanes<Acc>; ++lane) sum[0] += parts[lane];
    } else {
      for (int first = 0; first < hidden; first += P::kTile) {
        const int count = tile_columns<P::kTile>(first, hidden);
        __syncthreads();
        copy_tile<P::kTile>(static_cast<const T*>(in.w_hh), rows, hidden, first, count, tile);
        __syncthreads();
        if (row >= rows) continue;
        for (int c = 0; c < count; ++c) {
          const Acc w_c = weight(c);
#pragma unroll
          for (int r = 0; r < kSequences; ++r) sum[r] += w_c * lane_at(h, (first + c) * kSequences + r);
        }
      }
    }
  }

  // Writes a thread's sums for the cells. The input's and the hidden state's part of a GRU's last gate stay apart.
  __device__ void give(const Acc (&of_input)[kAhead], const Acc (&of_hidden)[kSequences]) const {
    if (row >= rows) return;
    const int gate = row / hidden;
    const int unit = row % hidden;
    const bool apart = C::kHiddenFirst > 0 && gate == C::kWeightGates - 1;
    Acc* to = sums + ((C::kHiddenFirst + gate) * hidden + unit) * kSequences;
#pragma unroll
    for (int r = 0; r < kSequences; ++r) {
      to[r] = apart ? of_hidden[r] : of_input[r] + of_hidden[r];
      if (apart) sums[unit * kSequences + r] = of_input[r];
    }
  }

  // The i-th step of a cell.
  __device__ void cell(const Item& item, std::int64_t i, Acc& state, const RecurrenceOutputs& out) const {
    Acc given[C::kGates];
    Acc saved[C::kSaved + 1];
    Acc value;
#pragma unroll
    for (int g = 0; g < C::kGates; ++g) given[g] = sums[g * hidden * kSequences + item.at];
    C::forward(given, state, saved, value);
    h[item.at] = value;
    const std::int64_t t = steps.at(i, item.length);
    static_cast<T*>(out.y)[item.element(t, s)] = static_cast<T>(value);
    if (out.saved == nullptr) return;
    Acc* to = static_cast<Acc*>(out.saved) + (t * s.sequences + item.n) * C::kSaved * hidden + item.unit;
#pragma unroll
    for (int q = 0; q < C::kSaved; ++q) to[q * hidden] = saved[q];
  }
};

template <class T, class C, int kUnits>
__global__ void __launch_bounds__(Plan<T, C, kUnits>::kMaxThreads)
    recurrence_forward_kernel(RecurrenceShape s, RecurrenceInputs in, RecurrenceOutputs out) {
  using P = Plan<T, C, kUnits>;
  using Acc = Compute<T>;
  const Forward<T, C, kUnits> f(s, in);
  Item items[P::kItems];
  Acc state[P::kItems] = {};
  for (int i = static_cast<int>(threadIdx.x); i < P::padded(f.hidden) * P::kSequences;
       i += static_cast<int>(blockDim.x)) {
    f.h[i] = Acc(0);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < P::kItems; ++k) {
    items[k] = Item::of(k, f.hidden, f.steps, P{});
    if (!items[k].exists) continue;
    const auto start = [&](const void* from) {
      const auto value = static_cast<Acc>(static_cast<const T*>(from)[items[k].element(0, s)]);
      return f.steps.is_valid(items[k].n) ? value : kNan<Acc>;
    };
    f.h[items[k].at] = start(in.h0);
    state[k] = start(C::kHasCell ? in.c0 : in.h0);
  }
  Acc w[kUnits + 1];
  f.load_weights(w);
  __syncthreads();
  const Acc input_bias = f.bias(in.b_ih);
  const Acc hidden_bias = f.bias(in.b_hh);
  const std::int64_t limit = longest<P::kSequences>(f.steps);
  Acc of_input[kAhead] = {};
  for (std::int64_t i = 0; i < limit; ++i) {
    if (i % (kAhead / P::kSequences) == 0) f.input_products(i, input_bias, of_input);
    Acc of_hidden[P::kSequences];
#pragma unroll
    for (int r = 0; r < P::kSequences; ++r) of_hidden[r] = hidden_bias;
    f.hidden_products(w, of_hidden);
    f.give(of_input, of_hidden);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < P::kItems; ++k) {
      if (i < items[k].length) f.cell(items[k], i, state[k], out);
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p + P::kSequences < kAhead; ++p) of_input[p] = of_input[p + P::kSequences];
  }
#pragma unroll
  for (int k = 0; k < P::kItems; ++k) {
    if (!items[k].exists) continue;
    const std::int64_t last = items[k].element(0, s);
    static_cast<T*>(out.h)[last] = static_cast<T>(f.h[items[k].at]);
    if constexpr (C::kHasCell) static_cast<T*>(out.c)[last] = static_cast<T>(state[k]);
    for (std::int64_t t = items[k].length; t < s.steps; ++t) {
      static_cast<T*>(out.y)[items[k].element(t, s)] = static_cast<T>(Acc(0));
    }
  }
}

}  // namespace

void check_shape(const RecurrenceShape& s) {
  if (s.hidden < 1 || s.hidden > kMaxHidden) {
    throw std::invalid_argument("recurrence: kernels for GPUs are for 1 to " + std::to_string(kMaxHidden) +
                                " hidden units, got " + std::to_string(s.hidden));
  }
  if (s.inputs > kMaxInputs || s.sequences > kMaxSequences) {
    throw std::invalid_argument("recurrence: kernels for GPUs take up to " + std::to_string(kMaxInputs) +
                                " inputs and " + std::to_string(kMaxSequences) + " sequences, got " +
                                std::to_string(s.inputs) + " and " + std::to_string(s.sequences));
  }
}

std::int64_t saved_numel(const RecurrenceShape& shape) {
  std::int64_t numel = 0;
  dispatch_plan(
      shape, [&]<class T, class C, int kUnits> { numel = shape.steps * shape.sequences * shape.hidden * C::kSaved; });
  return numel;
}

void recurrence_forward(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const RecurrenceOutputs& outputs,
                        cudaStream_t stream) {
  check_shape(shape);
  if (shape.sequences == 0) return;
  dispatch_plan(shape, [&]<class T, class C, int kUnits> {
    using P = Plan<T, C, kUnits>;
    const int hidden = static_cast<int>(shape.hidden);
    start("recurrence_forward_kernel", recurrence_forward_kernel<T, C, kUnits>, P::blocks(shape.sequences),
          P::threads(hidden), P::forward_bytes(hidden), stream, shape, inputs, outputs);
  });
}

}  // namespace fastseq::cuda
