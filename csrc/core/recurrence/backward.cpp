#include <algorithm>
#include <cstdint>

#include "core/base/isa.h"
#include "core/recurrence/cell_dispatch.h"
#include "core/recurrence/cells.h"
#include "core/recurrence/recurrence.h"
#include "core/recurrence/tiles.h"
#include "core/recurrence/weight_gradients.h"
#include "core/recurrence/weights.h"

namespace fastseq {

namespace {

using namespace recurrence;

template <class T, class O>
struct Backward {
  RecurrenceShape shape;
  Activity activity;
  std::int64_t panels;
  const T* y;
  const T* saved;
  const T* h0;
  const T* c0;
  const T* dy;
  const O* w_ih;  // packed; null: dx is not needed
  const O* w_hh;
  bool to_start;  // whether the gradient of h0 is needed
  T* dh;          // gradients of h and c; [panel][sequence][L]
  T* dc;
  T* d;        // gradients of the sums: [step][panel][sequence][sum][L]
  O* rounded;  // those of a step, if operands are pairs: [panel][sequence][sum][L / 2]
  T* dx;

  // Gradients of the sums of step t, as products take them.
  const O* factors(std::int64_t t, std::int64_t gates) const {
    if constexpr (kNumbers<O> == 1) return d + t * panels * shape.sequences * gates * kPanel<T>;
    return rounded;
  }
};

// Gradients of the sums of sequence n at step t, for one vector of units of panel p.
template <class Cell, int kBytes, class T, class O>
inline void backward_cell(const Backward<T, O>& b, std::int64_t t, std::int64_t p, std::int64_t lane, bool starts,
                          std::int64_t n) {
  using V = simd::Vector<T, kBytes>;
  constexpr std::int64_t kL = kPanel<T>;
  const auto& s = b.shape;
  const std::int64_t units = units_in<T>(p, s.hidden) - lane;
  const std::int64_t unit = n * s.hidden + p * kL + lane;
  const std::int64_t step = s.sequences * s.hidden;
  const std::int64_t at = (p * s.sequences + n) * kL + lane;
  const auto units_of = [&](const T* rows, std::int64_t offset, std::int64_t numel) {
    V v;
    simd::load_first(v, rows + offset, units, rows + numel);
    return v;
  };
  V dh;
  simd::load(dh, b.dh + at);
  if (b.dy != nullptr) {
    dh += units_of(b.dy, t * step + unit, s.steps * step);
  }
  V saved[Cell::kSaved + 1];
  const auto saved_at = [&](std::int64_t of) {
    return b.saved + ((of * b.panels + p) * s.sequences + n) * Cell::kSaved * kL + lane;
  };
#pragma GCC unroll 5  // or else they are copied through memory, in pieces, which stalls the next load
  for (int q = 0; q < Cell::kSaved; ++q) simd::load(saved[q], saved_at(t) + q * kL);
  const V before = [&] {
    if constexpr (Cell::kHasCell) {
      if (starts) return units_of(b.c0, unit, step);
      V v;
      simd::load(v, saved_at(b.activity.before(t)) + (Cell::kSaved - 1) * kL);
      return v;
    } else if constexpr (Cell::kCarries) {
      return starts ? units_of(b.h0, unit, step) : units_of(b.y, b.activity.before(t) * step + unit, s.steps * step);
    } else {
      return V{};
    }
  }();
  const V h = [&] {
    if constexpr (Cell::kSaved > 0) return V{};
    return units_of(b.y, t * step + unit, s.steps * step);
  }();
  V dc{};
  if constexpr (Cell::kHasCell) simd::load(dc, b.dc + at);
  V d[Cell::kGates];
  Cell::backward(saved, before, h, dh, dc, d);
  T* to = b.d + ((t * b.panels + p) * s.sequences + n) * Cell::kGates * kL + lane;
#pragma GCC unroll 4
  for (int g = 0; g < Cell::kGates; ++g) simd::store(to + g * kL, d[g]);
  if constexpr (Cell::kHasCell) simd::store(b.dc + at, dc);
  if constexpr (Cell::kCarries) simd::store(b.dh + at, dh);
}

// Gradients of the inputs of a step's sums: the gates' gradients times weights. Only numbers depend on the cell, so the
// code is shared by all cells.
template <class T, class O>
struct Products {
  const O* weights;      // packed
  std::int64_t gates;    // number of sums that have weights
  std::int64_t first;    // the first of them
  std::int64_t columns;  // features
  bool adds;             // adds to the output instead of replacing it
  T* panels;             // output, [panel][sequence][L]; null: rows
  T* rows;               // output, (steps, sequences, columns)
};

// Products of step t, for sequences [n, n + kRows) and column panels [column, column + kColumns), by panels
// [from, to) of units. The sums by the panels before are in `partial`, and stay there until all are taken.
template <int kSums, int kBytes, int kColumns, int kRows, class T, class O>
inline void product_tile(const Backward<T, O>& b, const Products<T, O>& w, std::int64_t t, std::int64_t column,
                         std::int64_t lane, std::int64_t n, std::int64_t from, std::int64_t to, T* partial) {
  constexpr std::int64_t kL = kPanel<T>;
  constexpr std::int64_t kUnits = kL / kNumbers<O>;  // operands of a panel
  const auto& s = b.shape;
  using V = simd::Vector<T, kBytes>;
  V sums[kRows][kColumns];
  const auto for_sums = [&](const auto& fn) {
#pragma GCC unroll 12  // the sums stay in registers
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) fn(r, c, sums[r][c]);
    }
  };
  const auto place = [&](int r, int c) { return w.panels + ((column + c) * s.sequences + n + r) * kL + lane; };
  if (from > 0) {
    load_tile(sums, partial, kColumns * simd::kLanes<V>, simd::kLanes<V>);
  } else {
    for_sums([](int /*r*/, int /*c*/, V& sum) { sum = V{}; });
    if (w.adds) for_sums([&](int r, int c, V& sum) { simd::load(sum, place(r, c)); });
  }
  const std::int64_t gates = kSums == 1 ? 1 : w.gates;
  const O* weights = w.weights + (column * operand_count<O>(s.hidden) + from * kUnits * kColumns) * gates * kL + lane;
  const O* const factors = b.factors(t, kSums);
  for (std::int64_t p = from; p < to; ++p) {
    const std::int64_t units = operand_count<O>(units_in<T>(p, s.hidden));
    const O* d = factors + ((p * s.sequences + n) * kSums + w.first) * kUnits;
    for (std::int64_t j = 0; j < gates; ++j) {
      add_products<0, kColumns>(sums, d + j * kUnits, kSums * kUnits, 1, weights, kColumns * kL, units);
      weights += units * kColumns * kL;
    }
  }
  if (to < b.panels) {
    store_tile(sums, partial, kColumns * simd::kLanes<V>, simd::kLanes<V>);
    return;
  }
  if (w.panels != nullptr) {
    for_sums([&](int r, int c, V& sum) { simd::store(place(r, c), sum); });
    return;
  }
  // The last vector has fewer lanes: they are copied through memory, or else each sum would need its own code.
  const std::int64_t left = w.columns - column * kL - lane;
  T* const rows = w.rows + (t * s.sequences + n) * w.columns + column * kL + lane;
  alignas(V) T last[kRows][simd::kLanes<V>];
  for_sums([&](int r, int c, V& sum) {
    if (left >= c * kL + simd::kLanes<V>) {
      simd::store(rows + r * w.columns + c * kL, sum);
    } else if (left > c * kL) {
      simd::store(last[r], sum);
    }
  });
  const std::int64_t lanes = left % kL;
  if (left <= 0 || left >= kColumns * kL || lanes == 0 || lanes >= simd::kLanes<V>) return;
#pragma GCC unroll 1
  for (int r = 0; r < kRows; ++r) {
    simd::copy_lanes<V>(rows + r * w.columns + left - lanes, last[r], lanes);
  }
}

// Calls fn.operator()<columns>(first) for the blocks of column panels that pack_rows makes.
template <class Fn>
inline void for_columns(std::int64_t panels, const Fn& fn) {
  std::int64_t first = 0;
  for (; panels - first >= 4; first += 4) fn.template operator()<4>(first);
  if (panels - first >= 2) {
    fn.template operator()<2>(first);
    first += 2;
  }
  if (panels - first == 1) fn.template operator()<1>(first);
}

// Products of step t, for sequences [first, last).
template <int kSums>
struct ProductRange {
  template <int kBytes, class T, class O>
  static void run(const Backward<T, O>& b, const Products<T, O>& w, std::int64_t t, std::int64_t first,
                  std::int64_t last) {
    constexpr std::int64_t kLanes = simd::kLanes<simd::Vector<T, kBytes>>;
    for_columns(panel_count<T>(w.columns), [&]<int kColumns>(std::int64_t column) {
      alignas(kBytes) T partial[kBlockSequences * kColumns * kLanes];
      const std::int64_t panels = std::max<std::int64_t>(block_rows(kColumns) * kNumbers<O> / (kPanel<T> * kSums), 1);
      for (std::int64_t lane = 0; lane < kPanel<T>; lane += kLanes) {
        for_blocks(first, last, kBlockSequences, [&](std::int64_t begin, std::int64_t end) {
          for_blocks(0, b.panels, panels, [&](std::int64_t from, std::int64_t to) {
            for_tiles<tile_rows<kBytes>(kColumns)>(begin, end, [&]<int kRows>(std::int64_t n) {
              product_tile<kSums, kBytes, kColumns, kRows>(b, w, t, column, lane, n, from, to,
                                                           partial + (n - begin) * kColumns * kLanes);
            });
          });
        });
      }
    });
  }
};

template <class Cell>
struct CellRange {
  template <int kBytes, class T, class O>
  static void run(const Backward<T, O>& b, std::int64_t t, std::int64_t first, std::int64_t last, bool starts) {
    for (std::int64_t p = 0; p < b.panels; ++p) {
      for (std::int64_t lane = 0; lane < units_in<T>(p, b.shape.hidden);
           lane += simd::kLanes<simd::Vector<T, kBytes>>) {
        for (std::int64_t n = first; n < last; ++n) backward_cell<Cell, kBytes>(b, t, p, lane, starts, n);
      }
    }
  }
};

// Rounds the gradients of the sums of step t, of sequences [first, last), for the products.
template <int kGates>
inline void round_gradients(const Backward<float, Bf16Pair>& b, std::int64_t t, std::int64_t first, std::int64_t last) {
  constexpr std::int64_t kL = kPanel<float>;
  const std::int64_t sequences = b.shape.sequences;
  for (std::int64_t p = 0; p < b.panels; ++p) {
    const std::int64_t units = units_in<float>(p, b.shape.hidden);
    for (std::int64_t row = (p * sequences + first) * kGates; row < (p * sequences + last) * kGates; ++row) {
      const float* d = b.d + (t * b.panels * sequences * kGates + row) * kL;
      to_pairs(d, units, b.rounded + row * kL / 2);
    }
  }
}

// All steps of the sequences [begin, end).
template <class Cell, class T, class O>
void backward_steps(const Backward<T, O>& b, std::int64_t begin, std::int64_t end) {
  const auto& s = b.shape;
  const Products<T, O> hidden{.weights = b.w_hh,
                              .gates = Cell::kWeightGates,
                              .first = Cell::kHiddenFirst,
                              .columns = s.hidden,
                              .adds = Cell::kCarries,
                              .panels = b.dh,
                              .rows = nullptr};
  const Products<T, O> input{.weights = b.w_ih,
                             .gates = Cell::kWeightGates,
                             .first = Cell::kInputFirst,
                             .columns = s.inputs,
                             .adds = false,
                             .panels = nullptr,
                             .rows = b.dx};
  for (std::int64_t i = s.steps - 1; i >= 0; --i) {
    const std::int64_t t = s.reverse ? s.steps - 1 - i : i;
    b.activity.for_runs(t, begin, end, [&](std::int64_t first, std::int64_t last, bool starts) {
      run_best<CellRange<Cell>>(b, t, first, last, starts);
      if constexpr (kNumbers<O> == 2) best<round_gradients<Cell::kGates>>(b, t, first, last);
      if (!starts || b.to_start) run_best_for<O, ProductRange<Cell::kGates>>(b, hidden, t, first, last);
      if (b.w_ih != nullptr) run_best_for<O, ProductRange<Cell::kGates>>(b, input, t, first, last);
    });
    for (std::int64_t n = begin; n < end && b.dx != nullptr; ++n) {
      if (t >= b.activity.length(n)) std::fill_n(b.dx + (t * s.sequences + n) * s.inputs, s.inputs, T{});
    }
  }
}

template <class T, class O, class Cell>
void backward(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g,
              ParallelFor parallel_for) {
  constexpr std::int64_t kL = kPanel<T>;
  const std::int64_t panels = panel_count<T>(s.hidden);
  const std::int64_t rows = Cell::kWeightGates * operand_count<O>(s.hidden);
  const std::int64_t input_panels = g.dx == nullptr ? 0 : panel_count<T>(s.inputs);
  const Scratch<O> w_hh(rows * panels * kL);
  const Scratch<O> w_ih(rows * input_panels * kL);
  const Scratch<T> dh(panels * s.sequences * kL);
  const Scratch<T> dc(Cell::kHasCell ? panels * s.sequences * kL : 0);
  const Scratch<T> d(s.steps * panels * s.sequences * Cell::kGates * kL);
  const Scratch<O> rounded(kNumbers<O> == 1 ? 0 : panels * s.sequences * Cell::kGates * kL / 2);
  auto pack = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      if (p < panels) {
        pack_rows(static_cast<const T*>(in.w_hh), Cell::kHiddenGates, Cell::kWeightGates, s.hidden, s.hidden, p,
                  w_hh.data());
      } else {
        pack_rows(static_cast<const T*>(in.w_ih), Cell::kInputGates, Cell::kWeightGates, s.hidden, s.inputs, p - panels,
                  w_ih.data());
      }
    }
  };
  for_ranges(parallel_for, panels + input_panels, grain(kCopiesPerThread, rows * kL), pack);

  const Backward<T, O> b{.shape = s,
                         .activity = {.steps = s.steps, .reverse = s.reverse, .lengths = in.lengths},
                         .panels = panels,
                         .y = static_cast<const T*>(g.y),
                         .saved = static_cast<const T*>(g.saved),
                         .h0 = static_cast<const T*>(in.h0),
                         .c0 = static_cast<const T*>(in.c0),
                         .dy = static_cast<const T*>(g.dy),
                         .w_ih = g.dx == nullptr ? nullptr : w_ih.data(),
                         .w_hh = w_hh.data(),
                         .to_start = g.dh0 != nullptr,
                         .dh = dh.data(),
                         .dc = dc.data(),
                         .d = d.data(),
                         .rounded = rounded.data(),
                         .dx = static_cast<T*>(g.dx)};
  auto range = [&](std::int64_t begin, std::int64_t end) {
    to_panels(static_cast<const T*>(g.dh), s, begin, end, dh.data());
    if constexpr (Cell::kHasCell) to_panels(static_cast<const T*>(g.dc), s, begin, end, dc.data());
    backward_steps<Cell>(b, begin, end);
    if (g.dh0 != nullptr) from_panels(dh.data(), s, begin, end, static_cast<T*>(g.dh0));
    if (Cell::kHasCell && g.dc0 != nullptr) from_panels(dc.data(), s, begin, end, static_cast<T*>(g.dc0));
  };
  for_ranges(parallel_for, s.sequences, sequence_grain(s), range);
  weight_gradients(s, in, g, d.data(), parallel_for);
}

}  // namespace

std::int64_t saved_numel(const RecurrenceShape& shape) {
  std::int64_t numel = 0;
  dispatch_cell(shape, [&]<class T, class O, class C>(Type<T>, Type<O>, Type<C>) {
    numel = shape.steps * shape.sequences * panel_count<T>(shape.hidden) * kPanel<T> * C::kSaved;
  });
  return numel;
}

void recurrence_backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                         const RecurrenceGradients& gradients, ParallelFor parallel_for) {
  dispatch_cell(shape, [&]<class T, class O, class C>(Type<T>, Type<O>, Type<C>) {
    backward<T, O, C>(shape, inputs, gradients, parallel_for);
  });
}

}  // namespace fastseq
