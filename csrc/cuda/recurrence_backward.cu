// Gradients of a small recurrent layer: a launch for all time steps, which writes the gradients of the cells' sums,
// then products of these.
#include "cuda/recurrence_block.h"
#include "cuda/recurrence_gradients.h"

namespace fastseq::cuda {

namespace {

// What a cell's backward reads from memory.
template <class Acc, class C>
struct Read {
  Acc saved[C::kSaved + 1];
  Acc before;
  Acc h;
  Acc dh;
};

template <class T, class C, int kUnits>
struct Backward {
  using P = Plan<T, C, kUnits>;
  using Acc = Compute<T>;
  static constexpr int kSequences = P::kSequences;

  RecurrenceShape s;
  RecurrenceInputs in;
  RecurrenceGradients g;
  Steps steps;
  int hidden;
  int rows;
  int row;         // the thread's
  int gate;        // of the row
  int unit;        // whose gradient the thread sums up, over the units of the gate
  Acc* d;          // all steps': [step][sequence][sum][unit]
  Acc* d_of_step;  // shared: [sum][unit][sequence], zero in padding
  Acc* parts;      // gradients of the hidden state, one for each gate: [gate][unit][sequence]

  __device__ Backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                      const RecurrenceGradients& gradients, void* scratch)
      : s(shape),
        in(inputs),
        g(gradients),
        steps(shape, inputs),
        hidden(static_cast<int>(shape.hidden)),
        rows(P::rows(hidden)),
        row(static_cast<int>(threadIdx.x)),
        gate(row / hidden),
        unit(row % hidden),
        d(static_cast<Acc*>(scratch)),
        d_of_step(static_cast<Acc*>(dynamic_shared())),
        parts(d_of_step + C::kGates * P::padded(hidden) * kSequences) {}

  __device__ static Acc at(const void* values, std::int64_t i) {
    return static_cast<Acc>(static_cast<const T*>(values)[i]);
  }
  // The weight of the thread's unit for unit q of its gate.
  __device__ Acc weight(int q) const {
    return at(in.w_hh, (static_cast<std::int64_t>(gate) * hidden + q) * hidden + unit);
  }

  // What the i-th step of a cell reads. It is read a step ahead, as memory is slow.
  __device__ Read<Acc, C> read(const Item& item, std::int64_t i) const {
    Read<Acc, C> r{};
    if (i < 0 || i >= item.length) return r;
    const std::int64_t t = steps.at(i, item.length);
    const std::int64_t t_before = steps.at(i - 1, item.length);
    const auto saved_at = [&](std::int64_t of, int q) {
      return static_cast<const Acc*>(g.saved)[((of * s.sequences + item.n) * C::kSaved + q) * hidden + item.unit];
    };
#pragma unroll
    for (int q = 0; q < C::kSaved; ++q) r.saved[q] = saved_at(t, q);
    if constexpr (C::kHasCell) {
      r.before = i == 0 ? at(in.c0, item.element(0, s)) : saved_at(t_before, C::kSaved - 1);
    } else if constexpr (C::kCarries) {
      r.before = i == 0 ? at(in.h0, item.element(0, s)) : at(g.y, item.element(t_before, s));
    } else {
      r.h = at(g.y, item.element(t, s));
    }
    if (g.dy != nullptr) r.dh = at(g.dy, item.element(t, s));
    return r;
  }

  // The sum of the parts that a unit's row has.
  __device__ Acc sum_of_parts(const Item& item) const {
    Acc sum = 0;
#pragma unroll
    for (int of = 0; of < C::kWeightGates; ++of) sum += parts[of * hidden * kSequences + item.at];
    return sum;
  }

  // The i-th step of a cell; dh and dc: what later steps and the layer's outputs give.
  __device__ void cell(const Item& item, std::int64_t i, const Read<Acc, C>& r, Acc& dh, Acc& dc) const {
    Acc given = dh + sum_of_parts(item) + r.dh;
    Acc sums[C::kGates];
    C::backward(r.saved, r.before, r.h, given, dc, sums);
    dh = C::kCarries ? given : Acc(0);
    Acc* to = d_at(item, steps.at(i, item.length));
#pragma unroll
    for (int q = 0; q < C::kGates; ++q) {
      d_of_step[q * P::padded(hidden) * kSequences + item.at] = sums[q];
      to[q * hidden] = sums[q];
    }
  }
  __device__ Acc* d_at(const Item& item, std::int64_t t) const {
    return d + (t * s.sequences + item.n) * C::kGates * hidden + item.unit;
  }

  // The part of the hidden state's gradient that comes through the thread's gate.
  __device__ void products(const Acc (&w)[kUnits + 1]) const {
    if (row >= rows) return;
    const Acc* from = d_of_step + (C::kHiddenFirst + gate) * P::padded(hidden) * kSequences;
    Acc* to = parts + row * kSequences;
    Acc sums[kLanes<Acc>] = {};
    if constexpr (kUnits > 0) {
#pragma unroll
      for (int q = 0; q < kUnits; ++q) {
        sums[q % kLanes<Acc>] += w[q] * lane_at(from, q);
      }
#pragma unroll
      for (int lane = 1; lane < kLanes<Acc>; ++lane) sums[0] += sums[lane];
    } else {
#pragma unroll 8
      for (int q = 0; q < hidden; ++q) {
        const Acc w_q = weight(q);
#pragma unroll
        for (int r = 0; r < kSequences; ++r) sums[r] += w_q * lane_at(from, q * kSequences + r);
      }
    }
#pragma unroll
    for (int r = 0; r < kSequences; ++r) to[r] = sums[r];
  }
};

template <class T, class C, int kUnits>
__global__ void __launch_bounds__(Plan<T, C, kUnits>::kMaxThreads)
    recurrence_backward_kernel(RecurrenceShape s, RecurrenceInputs in, RecurrenceGradients g, void* scratch) {
  using P = Plan<T, C, kUnits>;
  using Acc = Compute<T>;
  const Backward<T, C, kUnits> b(s, in, g, scratch);
  const int shared = (C::kGates * P::padded(b.hidden) + b.rows) * P::kSequences;
  for (int i = b.row; i < shared; i += static_cast<int>(blockDim.x)) b.d_of_step[i] = Acc(0);
  Acc w[kUnits + 1];
#pragma unroll
  for (int q = 0; q < kUnits; ++q) w[q] = q < b.hidden && b.row < b.rows ? b.weight(q) : Acc(0);

  const std::int64_t limit = longest<P::kSequences>(b.steps);
  Item items[P::kItems];
  Read<Acc, C> next[P::kItems];
  Acc dh[P::kItems];
  Acc dc[P::kItems];
#pragma unroll
  for (int k = 0; k < P::kItems; ++k) {
    items[k] = Item::of(k, b.hidden, b.steps, P{});
    next[k] = b.read(items[k], limit - 1);
    const auto given = [&](const void* from) { return from == nullptr ? Acc(0) : b.at(from, items[k].element(0, s)); };
    dh[k] = items[k].exists ? given(g.dh) : Acc(0);
    dc[k] = C::kHasCell && items[k].exists ? given(g.dc) : Acc(0);
    if (items[k].exists && !b.steps.is_valid(items[k].n)) dh[k] = kNan<Acc>;
  }
  __syncthreads();
  for (std::int64_t i = limit - 1; i >= 0; --i) {
#pragma unroll
    for (int k = 0; k < P::kItems; ++k) {
      const Read<Acc, C> now = next[k];
      next[k] = b.read(items[k], i - 1);
      if (i < items[k].length) b.cell(items[k], i, now, dh[k], dc[k]);
    }
    __syncthreads();
    b.products(w);
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < P::kItems; ++k) {
    if (!items[k].exists) continue;
    const std::int64_t element = items[k].element(0, s);
    if (g.dh0 != nullptr) static_cast<T*>(g.dh0)[element] = static_cast<T>(dh[k] + b.sum_of_parts(items[k]));
    if (C::kHasCell && g.dc0 != nullptr) static_cast<T*>(g.dc0)[element] = static_cast<T>(dc[k]);
    for (std::int64_t t = items[k].length; t < s.steps; ++t) {
      for (int q = 0; q < C::kGates; ++q) b.d_at(items[k], t)[q * b.hidden] = Acc(0);
    }
  }
}

}  // namespace

std::int64_t backward_scratch(const RecurrenceShape& shape) { return d_numel(shape) + partial_numel(shape); }

void recurrence_backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                         const RecurrenceGradients& gradients, void* scratch, cudaStream_t stream) {
  check_shape(shape);
  if (shape.sequences != 0) {
    dispatch_plan(shape, [&]<class T, class C, int kUnits> {
      using P = Plan<T, C, kUnits>;
      const int hidden = static_cast<int>(shape.hidden);
      start("recurrence_backward_kernel", recurrence_backward_kernel<T, C, kUnits>, P::blocks(shape.sequences),
            P::threads(hidden), P::backward_bytes(hidden), stream, shape, inputs, gradients, scratch);
    });
  }
  input_gradients(shape, inputs, gradients, scratch, stream);
  weight_gradients(shape, inputs, gradients, scratch, stream);
}

}  // namespace fastseq::cuda
