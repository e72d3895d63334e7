#include <algorithm>
#include <cstdint>

#include "core/base/isa.h"
#include "core/recurrence/cell_dispatch.h"
#include "core/recurrence/cells.h"
#include "core/recurrence/recurrence.h"
#include "core/recurrence/tiles.h"
#include "core/recurrence/weights.h"

namespace fastseq {

namespace {

using namespace recurrence;

template <class T, class O>
struct Forward {
  RecurrenceShape shape;
  Activity activity;
  std::int64_t panels;
  const T* x;
  std::int64_t x_step;
  std::int64_t x_sequence;
  const T* h0;
  const O* w_ih;  // packed
  const O* w_hh;
  const T* biases;
  O* rounded;  // x and h of a step, if operands are pairs: (sequences, operands of x and of h)
  T* state;    // [panel][sequence][L]
  T* y;
  T* saved;

  std::int64_t x_operands() const { return operand_count<O>(shape.inputs); }
  std::int64_t h_operands() const { return operand_count<O>(shape.hidden); }
};

// What a step's products multiply with weights: x, and h before the step, of all sequences.
template <class O>
struct Factors {
  const O* x;
  std::int64_t x_sequence;
  const O* h;
  std::int64_t h_sequence;
};

// Step t of sequences [first, last), for panel p.
template <class T, class O>
struct PanelStep {
  std::int64_t t;
  std::int64_t p;
  std::int64_t first;
  std::int64_t last;
  Factors<O> factors;
  T* sums;  // of these sequences: [sequence][sum][L]
};

// Adds to the sums of sequences [n, n + kRows), for the vector of units at `lane` of the panel, the products with rows
// [from, to) of the weights of x and, after them, h; row 0 starts from the biases. Rows are counted in operands.
template <class Cell, int kBytes, int kRows, class T, class O>
inline void sums_tile(const Forward<T, O>& f, const PanelStep<T, O>& of, std::int64_t lane, std::int64_t n,
                      std::int64_t from, std::int64_t to) {
  using V = simd::Vector<T, kBytes>;
  constexpr std::int64_t kL = kPanel<T>;
  constexpr std::int64_t kRow = Cell::kWeightGates * kL;
  const Factors<O>& in = of.factors;
  V sums[kRows][Cell::kGates];
  T* place = of.sums + (n - of.first) * Cell::kGates * kL + lane;
  if (from == 0) {
#pragma GCC unroll 4
    for (int g = 0; g < Cell::kGates; ++g) {
      V bias;
      simd::load(bias, f.biases + (of.p * Cell::kGates + g) * kL + lane);
      for (int r = 0; r < kRows; ++r) sums[r][g] = bias;
    }
  } else {
    load_tile(sums, place, Cell::kGates * kL, kL);
  }
  const std::int64_t of_x = f.x_operands();
  if (from < of_x) {
    add_products<Cell::kInputFirst, Cell::kWeightGates>(sums, in.x + n * in.x_sequence + from, in.x_sequence, 1,
                                                        f.w_ih + (of.p * of_x + from) * kRow + lane, kRow,
                                                        std::min(to, of_x) - from);
  }
  const std::int64_t h_from = std::max(from - of_x, std::int64_t{0});
  add_products<Cell::kHiddenFirst, Cell::kWeightGates>(sums, in.h + n * in.h_sequence + h_from, in.h_sequence, 1,
                                                       f.w_hh + (of.p * f.h_operands() + h_from) * kRow + lane, kRow,
                                                       to - of_x - h_from);
  store_tile(sums, place, Cell::kGates * kL, kL);
}

template <class Cell>
struct SumsRange {
  template <int kBytes, class T, class O>
  static void run(const Forward<T, O>& f, const PanelStep<T, O>& of) {
    constexpr std::int64_t kLanes = simd::kLanes<simd::Vector<T, kBytes>>;
    for (std::int64_t lane = 0; lane < units_in<T>(of.p, f.shape.hidden); lane += kLanes) {
      for_blocks(0, f.x_operands() + f.h_operands(), block_rows(Cell::kWeightGates),
                 [&](std::int64_t from, std::int64_t to) {
                   for_tiles<tile_rows<kBytes>(Cell::kGates)>(of.first, of.last, [&]<int kRows>(std::int64_t n) {
                     sums_tile<Cell, kBytes, kRows>(f, of, lane, n, from, to);
                   });
                 });
    }
  }
};

// The step of sequence n after the products. The sequences after it, up to of.last, are written later.
template <class Cell, int kBytes, class T, class O>
inline void forward_cell(const Forward<T, O>& f, const PanelStep<T, O>& of, std::int64_t lane, std::int64_t n) {
  using V = simd::Vector<T, kBytes>;
  constexpr std::int64_t kL = kPanel<T>;
  const auto& s = f.shape;
  V sums[Cell::kGates];
#pragma GCC unroll 4  // or else they are copied through memory, in pieces, which stalls the next load
  for (int g = 0; g < Cell::kGates; ++g) {
    simd::load(sums[g], of.sums + ((n - of.first) * Cell::kGates + g) * kL + lane);
  }
  V state;
  V saved[Cell::kSaved + 1];
  V out;
  T* state_at = f.state + (of.p * s.sequences + n) * kL + lane;
  simd::load(state, state_at);
  Cell::forward(sums, state, saved, out);
  simd::store(state_at, state);
  if (f.saved != nullptr) {
    T* to = f.saved + ((of.t * f.panels + of.p) * s.sequences + n) * Cell::kSaved * kL + lane;
#pragma GCC unroll 5
    for (int q = 0; q < Cell::kSaved; ++q) simd::store(to + q * kL, saved[q]);
  }
  T* y = f.y + of.t * s.sequences * s.hidden;
  // If a vector holds all units of a sequence, the next sequence's are written after it.
  const T* free_until = s.hidden <= simd::kLanes<V> ? y + of.last * s.hidden : nullptr;
  const std::int64_t units = units_in<T>(of.p, s.hidden) - lane;
  simd::store_first(y + n * s.hidden + of.p * kL + lane, out, units, free_until);
}

template <class Cell>
struct CellRange {
  template <int kBytes, class T, class O>
  static void run(const Forward<T, O>& f, const PanelStep<T, O>& of) {
    for (std::int64_t lane = 0; lane < units_in<T>(of.p, f.shape.hidden);
         lane += simd::kLanes<simd::Vector<T, kBytes>>) {
      for (std::int64_t n = of.first; n < of.last; ++n) forward_cell<Cell, kBytes>(f, of, lane, n);
    }
  }
};

// The factors of step t of sequences [first, last), h being the state before it.
template <class T, class O>
Factors<O> factors_of(const Forward<T, O>& f, std::int64_t t, std::int64_t first, std::int64_t last, const T* h) {
  const T* const x = f.x + t * f.x_step;
  if constexpr (kNumbers<O> == 1) {
    return {.x = x, .x_sequence = f.x_sequence, .h = h, .h_sequence = f.shape.hidden};
  } else {
    const std::int64_t each = f.x_operands() + f.h_operands();
    best<round_rows>(x + first * f.x_sequence, f.x_sequence, last - first, f.shape.inputs, f.rounded + first * each,
                     each);
    best<round_rows>(h + first * f.shape.hidden, f.shape.hidden, last - first, f.shape.hidden,
                     f.rounded + first * each + f.x_operands(), each);
    return {.x = f.rounded, .x_sequence = each, .h = f.rounded + f.x_operands(), .h_sequence = each};
  }
}

// All steps of the sequences [begin, end). Products and cells are compiled apart: in one function, the cells' constants
// take registers from the sums.
template <class Cell, class T, class O>
void forward_steps(const Forward<T, O>& f, std::int64_t begin, std::int64_t end) {
  const auto& s = f.shape;
  alignas(64) T sums[kBlockSequences * Cell::kGates * kPanel<T>];
  for (std::int64_t i = 0; i < s.steps; ++i) {
    const std::int64_t t = s.reverse ? s.steps - 1 - i : i;
    f.activity.for_runs(t, begin, end, [&](std::int64_t first, std::int64_t last, bool starts) {
      const T* h = starts ? f.h0 : f.y + f.activity.before(t) * s.sequences * s.hidden;
      const Factors<O> factors = factors_of(f, t, first, last, h);
      for (std::int64_t p = 0; p < f.panels; ++p) {
        for_blocks(first, last, kBlockSequences, [&](std::int64_t from, std::int64_t to) {
          const PanelStep<T, O> of{.t = t, .p = p, .first = from, .last = to, .factors = factors, .sums = sums};
          run_best_for<O, SumsRange<Cell>>(f, of);
          run_best<CellRange<Cell>>(f, of);
        });
      }
    });
    for (std::int64_t n = begin; n < end && s.hidden > 0; ++n) {
      if (t >= f.activity.length(n)) std::fill_n(f.y + (t * s.sequences + n) * s.hidden, s.hidden, T{});
    }
  }
}

template <class T, class O, class Cell>
void forward(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceOutputs& out,
             ParallelFor parallel_for) {
  constexpr std::int64_t kL = kPanel<T>;
  const std::int64_t panels = panel_count<T>(s.hidden);
  const std::int64_t x_operands = operand_count<O>(s.inputs);
  const std::int64_t h_operands = operand_count<O>(s.hidden);
  const Scratch<O> w_ih(panels * x_operands * Cell::kWeightGates * kL);
  const Scratch<O> w_hh(panels * h_operands * Cell::kWeightGates * kL);
  const Scratch<O> rounded(kNumbers<O> == 1 ? 0 : s.sequences * (x_operands + h_operands));
  const Scratch<T> biases(panels * Cell::kGates * kL);
  const Scratch<T> state(panels * s.sequences * kL);
  auto pack = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      pack_panels(static_cast<const T*>(in.w_ih), Cell::kInputGates, Cell::kWeightGates, s.hidden, s.inputs, p,
                  w_ih.data());
      pack_panels(static_cast<const T*>(in.w_hh), Cell::kHiddenGates, Cell::kWeightGates, s.hidden, s.hidden, p,
                  w_hh.data());
      pack_biases<Cell>(static_cast<const T*>(in.b_ih), static_cast<const T*>(in.b_hh), s.hidden, p, biases.data());
    }
  };
  for_ranges(parallel_for, panels, grain(kCopiesPerThread, (s.inputs + s.hidden) * Cell::kWeightGates * kL), pack);

  const auto* h0 = static_cast<const T*>(in.h0);
  auto* y = static_cast<T*>(out.y);
  const Forward<T, O> f{.shape = s,
                        .activity = {.steps = s.steps, .reverse = s.reverse, .lengths = in.lengths},
                        .panels = panels,
                        .x = static_cast<const T*>(in.x),
                        .x_step = in.x_step,
                        .x_sequence = in.x_sequence,
                        .h0 = h0,
                        .w_ih = w_ih.data(),
                        .w_hh = w_hh.data(),
                        .biases = biases.data(),
                        .rounded = rounded.data(),
                        .state = state.data(),
                        .y = y,
                        .saved = static_cast<T*>(out.saved)};
  auto range = [&](std::int64_t begin, std::int64_t end) {
    to_panels(Cell::kHasCell ? static_cast<const T*>(in.c0) : h0, s, begin, end, state.data());
    forward_steps<Cell>(f, begin, end);
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t length = f.activity.length(n);
      const T* last = length == 0 ? h0 : y + (s.reverse ? 0 : length - 1) * s.sequences * s.hidden;
      std::copy_n(last + n * s.hidden, s.hidden, static_cast<T*>(out.h) + n * s.hidden);
    }
    if constexpr (Cell::kHasCell) from_panels(state.data(), s, begin, end, static_cast<T*>(out.c));
  };
  for_ranges(parallel_for, s.sequences, sequence_grain(s), range);
}

}  // namespace

void recurrence_forward(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const RecurrenceOutputs& outputs,
                        ParallelFor parallel_for) {
  dispatch_cell(shape, [&]<class T, class O, class C>(Type<T>, Type<O>, Type<C>) {
    forward<T, O, C>(shape, inputs, outputs, parallel_for);
  });
}

}  // namespace fastseq
