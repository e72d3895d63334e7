#include <algorithm>
#include <cstdint>

#include "core/isa.h"
#include "core/recurrence.h"
#include "core/recurrence_cells.h"
#include "core/recurrence_dispatch.h"
#include "core/recurrence_tiles.h"
#include "core/recurrence_weight_gradients.h"
#include "core/recurrence_weights.h"

namespace fastseq {

namespace {

using namespace recurrence;

template <class T>
struct Backward {
  RecurrenceShape shape;
  Activity activity;
  std::int64_t panels;
  const T* y;
  const T* saved;
  const T* h0;
  const T* c0;
  const T* dy;
  const T* w_ih;  // packed; null: dx is not wanted
  const T* w_hh;
  bool to_start;  // whether the gradient of h0 is wanted
  T* dh;          // gradient of h, and of c; [panel][sequence][L]
  T* dc;
  T* d;  // gradients of the sums: [step][panel][sequence][sum][L]
  T* dx;
};

// Gradients of the sums of sequence n at step t, for the units of one vector of panel p.
template <class Cell, int kBytes, class T>
inline void backward_cell(const Backward<T>& b, std::int64_t t, std::int64_t p, std::int64_t lane, bool starts,
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
  for (int g = 0; g < Cell::kGates; ++g) simd::store(to + g * kL, d[g]);
  if constexpr (Cell::kHasCell) simd::store(b.dc + at, dc);
  if constexpr (Cell::kCarries) simd::store(b.dh + at, dh);
}

// sums[r][c] += the gradients of row n + r at step t, sums [kFirst, kFirst + kWeightGates), times packed weights.
template <class Cell, int kFirst, int kRows, int kColumns, class V, class T>
inline void add_weighted(V (&sums)[kRows][kColumns], const Backward<T>& b, std::int64_t t, std::int64_t n,
                         const T* weights) {
  constexpr std::int64_t kL = kPanel<T>;
  constexpr std::int64_t kRow = Cell::kGates * kL;
  for (std::int64_t p = 0; p < b.panels; ++p) {
    const std::int64_t units = units_in<T>(p, b.shape.hidden);
    const T* d = b.d + ((t * b.panels + p) * b.shape.sequences + n) * kRow + kFirst * kL;
    for (int j = 0; j < Cell::kWeightGates; ++j) {
      add_products<0, kColumns>(sums, d + j * kL, kRow, 1, weights, kColumns * kL, units);
      weights += units * kColumns * kL;
    }
  }
}

// dh before the products that make step t, of sequences [n, n + kRows), column panels [first, first + kColumns).
template <class Cell, int kBytes, int kColumns, int kRows, class T>
inline void hidden_tile(const Backward<T>& b, std::int64_t t, std::int64_t first, std::int64_t lane, std::int64_t n) {
  constexpr std::int64_t kL = kPanel<T>;
  simd::Vector<T, kBytes> sums[kRows][kColumns] = {};
  const auto place = [&](int r, int c) { return b.dh + ((first + c) * b.shape.sequences + n + r) * kL + lane; };
  if constexpr (Cell::kCarries) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) simd::load(sums[r][c], place(r, c));
    }
  }
  const T* weights = b.w_hh + first * kL * Cell::kWeightGates * b.shape.hidden + lane;
  add_weighted<Cell, Cell::kHiddenFirst>(sums, b, t, n, weights);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) simd::store(place(r, c), sums[r][c]);
  }
}

template <class Cell, int kBytes, int kColumns, int kRows, class T>
inline void input_tile(const Backward<T>& b, std::int64_t t, std::int64_t first, std::int64_t lane, std::int64_t n) {
  constexpr std::int64_t kL = kPanel<T>;
  simd::Vector<T, kBytes> sums[kRows][kColumns] = {};
  const auto& s = b.shape;
  const T* weights = b.w_ih + first * kL * Cell::kWeightGates * s.hidden + lane;
  add_weighted<Cell, Cell::kInputFirst>(sums, b, t, n, weights);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      const std::int64_t column = (first + c) * kL + lane;
      if (column >= s.inputs) break;
      simd::store_first(b.dx + (t * s.sequences + n + r) * s.inputs + column, sums[r][c], s.inputs - column);
    }
  }
}

// Calls fn.operator()<columns>(first) for the blocks of column panels that pack_rows makes.
template <class Fn>
inline void for_blocks(std::int64_t panels, const Fn& fn) {
  std::int64_t first = 0;
  for (; panels - first >= 4; first += 4) fn.template operator()<4>(first);
  if (panels - first >= 2) {
    fn.template operator()<2>(first);
    first += 2;
  }
  if (panels - first == 1) fn.template operator()<1>(first);
}

template <class T, class Cell>
struct BackwardRange {
  template <int kBytes>
  static void run(const Backward<T>& b, std::int64_t begin, std::int64_t end) {
    const auto& s = b.shape;
    for (std::int64_t i = s.steps - 1; i >= 0; --i) {
      const std::int64_t t = s.reverse ? s.steps - 1 - i : i;
      b.activity.for_runs(t, begin, end, [&](std::int64_t first, std::int64_t last, bool starts) {
        cells<kBytes>(b, t, first, last, starts);
        if (!starts || b.to_start) hidden_products<kBytes>(b, t, first, last);
        if (b.w_ih != nullptr) input_products<kBytes>(b, t, first, last);
      });
      for (std::int64_t n = begin; n < end && b.dx != nullptr; ++n) {
        if (t >= b.activity.length(n)) std::fill_n(b.dx + (t * s.sequences + n) * s.inputs, s.inputs, T{});
      }
    }
  }

 private:
  template <int kBytes>
  static constexpr std::int64_t kLanes = simd::kLanes<simd::Vector<T, kBytes>>;

  template <int kBytes>
  static void cells(const Backward<T>& b, std::int64_t t, std::int64_t first, std::int64_t last, bool starts) {
    for (std::int64_t p = 0; p < b.panels; ++p) {
      for (std::int64_t lane = 0; lane < units_in<T>(p, b.shape.hidden); lane += kLanes<kBytes>) {
        for (std::int64_t n = first; n < last; ++n) backward_cell<Cell, kBytes>(b, t, p, lane, starts, n);
      }
    }
  }

  template <int kBytes>
  static void hidden_products(const Backward<T>& b, std::int64_t t, std::int64_t first, std::int64_t last) {
    for_blocks(b.panels, [&]<int kColumns>(std::int64_t column) {
      for (std::int64_t lane = 0; lane < kPanel<T>; lane += kLanes<kBytes>) {
        for_tiles<tile_rows<kBytes>(kColumns)>(first, last, [&]<int kRows>(std::int64_t n) {
          hidden_tile<Cell, kBytes, kColumns, kRows>(b, t, column, lane, n);
        });
      }
    });
  }

  template <int kBytes>
  static void input_products(const Backward<T>& b, std::int64_t t, std::int64_t first, std::int64_t last) {
    for_blocks(panel_count<T>(b.shape.inputs), [&]<int kColumns>(std::int64_t column) {
      for (std::int64_t lane = 0; lane < kPanel<T>; lane += kLanes<kBytes>) {
        for_tiles<tile_rows<kBytes>(kColumns)>(first, last, [&]<int kRows>(std::int64_t n) {
          input_tile<Cell, kBytes, kColumns, kRows>(b, t, column, lane, n);
        });
      }
    });
  }
};

template <class T, class Cell>
void backward(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g,
              ParallelFor parallel_for) {
  constexpr std::int64_t kL = kPanel<T>;
  const std::int64_t panels = panel_count<T>(s.hidden);
  const std::int64_t rows = Cell::kWeightGates * s.hidden;
  const std::int64_t input_panels = g.dx == nullptr ? 0 : panel_count<T>(s.inputs);
  const Scratch<T> w_hh(rows * panels * kL);
  const Scratch<T> w_ih(rows * input_panels * kL);
  const Scratch<T> dh(panels * s.sequences * kL);
  const Scratch<T> dc(Cell::kHasCell ? panels * s.sequences * kL : 0);
  const Scratch<T> d(s.steps * panels * s.sequences * Cell::kGates * kL);
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

  const Backward<T> b{.shape = s,
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
                      .dx = static_cast<T*>(g.dx)};
  auto range = [&](std::int64_t begin, std::int64_t end) {
    to_panels(static_cast<const T*>(g.dh), s, begin, end, dh.data());
    if constexpr (Cell::kHasCell) to_panels(static_cast<const T*>(g.dc), s, begin, end, dc.data());
    run_best<BackwardRange<T, Cell>>(b, begin, end);
    if (g.dh0 != nullptr) from_panels(dh.data(), s, begin, end, static_cast<T*>(g.dh0));
    if (Cell::kHasCell && g.dc0 != nullptr) from_panels(dc.data(), s, begin, end, static_cast<T*>(g.dc0));
  };
  for_ranges(parallel_for, s.sequences, sequence_grain(s), range);
  weight_gradients(s, in, g, d.data(), parallel_for);
}

}  // namespace

std::int64_t saved_numel(const RecurrenceShape& shape) {
  std::int64_t numel = 0;
  dispatch_cell(shape, [&]<class T, class C>(Type<T>, Type<C>) {
    numel = shape.steps * shape.sequences * panel_count<T>(shape.hidden) * kPanel<T> * C::kSaved;
  });
  return numel;
}

void recurrence_backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                         const RecurrenceGradients& gradients, ParallelFor parallel_for) {
  dispatch_cell(shape,
                [&]<class T, class C>(Type<T>, Type<C>) { backward<T, C>(shape, inputs, gradients, parallel_for); });
}

}  // namespace fastseq
