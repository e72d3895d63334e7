#include "core/recurrence/weight_gradients.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/isa.h"
#include "core/recurrence/cell_dispatch.h"
#include "core/recurrence/cells.h"
#include "core/recurrence/paired_samples.h"
#include "core/recurrence/tiles.h"

namespace fastseq::recurrence {

namespace {

// One matrix's part of the work. Its rows are features: of x, or of the hidden state before each step.
template <class T, class O>
struct Features {
  const O* data;
  std::int64_t step;
  std::int64_t sequence;
  std::int64_t count;
  const O* start;    // data of a sequence's first step instead, or null: what belongs to each step is at its place
  T* gradient;       // (gates * hidden, features)
  const int* gates;  // gates of the weights; `first` is the first of their sums
  std::int64_t first;
};

template <class T, class O>
struct WeightGradients {
  RecurrenceShape shape;
  Activity activity;
  std::int64_t panels;
  const T* d;  // gradients of the sums: [step][panel][sequence][sum][L]
  // What products take: sequences, or pairs of them.
  std::int64_t operands;
  Activity operands_activity;
  const O* d_operands;  // [step][panel][operand][sum][L]
  Features<T, O> x;
  Features<T, O> h;
  T* db_ih;
  T* db_hh;
  T* sums;  // [unit of work][kGroup][kWeightGates][L]
};

// Features per unit of work, few enough to keep their sums in registers.
template <class Cell>
constexpr std::int64_t kGroup = Cell::kWeightGates == 4   ? 6
                                : Cell::kWeightGates == 3 ? 8
                                                          : 12;

// Steps [from, to) of sequences, or pairs of them, [first, last). Their gradients stay in the first-level cache while
// looping over all features.
struct Samples {
  std::int64_t from;
  std::int64_t to;
  std::int64_t first;
  std::int64_t last;

  bool start() const { return from == 0 && first == 0; }
};

// Calls fn(samples) for blocks that cover all samples, in order; at least once.
template <class Fn>
inline void for_samples(std::int64_t all_steps, std::int64_t sequences, std::int64_t size, const Fn& fn) {
  const std::int64_t steps = std::max<std::int64_t>(size / std::max<std::int64_t>(sequences, 1), 1);
  for_blocks(0, all_steps, steps, [&](std::int64_t from, std::int64_t to) {
    for_blocks(0, sequences, steps > 1 ? sequences : size,
               [&](std::int64_t first, std::int64_t last) { fn(Samples{from, to, first, last}); });
  });
}

// Samples of `kRows` features, starting at `feature`, added to sums.
template <class Cell, int kBytes, int kRows, class T, class O>
inline void weight_tile(const WeightGradients<T, O>& w, const Features<T, O>& a, std::int64_t p, std::int64_t lane,
                        std::int64_t feature, const Samples& of, T* sums) {
  using V = simd::Vector<T, kBytes>;
  constexpr std::int64_t kL = kPanel<T>;
  constexpr std::int64_t kRow = Cell::kGates * kL;
  V acc[kRows][Cell::kWeightGates] = {};
  if (!of.start()) load_tile(acc, sums + lane, Cell::kWeightGates * kL, kL);
  for (std::int64_t t = of.from; t < of.to; ++t) {
    w.operands_activity.for_runs(t, of.first, of.last, [&](std::int64_t first, std::int64_t last, bool starts) {
      const bool initial = starts && a.start != nullptr;
      const std::int64_t step = a.start == nullptr ? t : w.activity.before(t);
      const O* features = (initial ? a.start : a.data + step * a.step) + first * a.sequence + feature;
      const O* d = w.d_operands + ((t * w.panels + p) * w.operands + first) * kRow + a.first * kL + lane;
      add_products<0, Cell::kWeightGates>(acc, features, 1, a.sequence, d, kRow, last - first);
    });
  }
  store_tile(acc, sums + lane, Cell::kWeightGates * kL, kL);
}

// The biases' gradients of panel p.
template <class Cell, int kBytes, class T, class O>
inline void bias_gradients(const WeightGradients<T, O>& w, std::int64_t p) {
  using V = simd::Vector<T, kBytes>;
  constexpr std::int64_t kL = kPanel<T>;
  for (std::int64_t lane = 0; lane < units_in<T>(p, w.shape.hidden); lane += simd::kLanes<V>) {
    V acc[Cell::kGates] = {};
    for (std::int64_t t = 0; t < w.shape.steps; ++t) {
      w.activity.for_runs(t, 0, w.shape.sequences, [&](std::int64_t first, std::int64_t last, bool /*starts*/) {
        for (std::int64_t n = first; n < last; ++n) {
          const T* d = w.d + ((t * w.panels + p) * w.shape.sequences + n) * Cell::kGates * kL + lane;
#pragma GCC unroll 4
          for (int g = 0; g < Cell::kGates; ++g) {
            V v;
            simd::load(v, d + g * kL);
            acc[g] += v;
          }
        }
      });
    }
    const std::int64_t units = units_in<T>(p, w.shape.hidden) - lane;
    for (int j = 0; j < Cell::kWeightGates; ++j) {
      const std::int64_t unit = p * kL + lane;
      simd::store_first(w.db_ih + Cell::kInputGates[j] * w.shape.hidden + unit, acc[Cell::kInputFirst + j], units);
      simd::store_first(w.db_hh + Cell::kHiddenGates[j] * w.shape.hidden + unit, acc[Cell::kHiddenFirst + j], units);
    }
  }
}

// Units of work: for each panel the groups of x's features, then the groups of the hidden state's.
template <class T, class O, class Cell>
struct WeightRange {
  template <int kBytes>
  static void run(const WeightGradients<T, O>& w, std::int64_t begin, std::int64_t end) {
    const std::int64_t x_groups = groups(w.x.count);
    const std::int64_t per_panel = x_groups + groups(w.h.count);
    while (begin < end) {
      const std::int64_t p = begin / per_panel;
      const std::int64_t stop = std::min(end, (p + 1) * per_panel);
      if (begin == p * per_panel && w.db_ih != nullptr) bias_gradients<Cell, kBytes>(w, p);
      for_samples(w.shape.steps, w.operands, block_rows(Cell::kGates), [&](const Samples& samples) {
        for (std::int64_t unit = begin; unit < stop; ++unit) {
          const std::int64_t group = unit - p * per_panel;
          const bool of_x = group < x_groups;
          add<kBytes>(w, of_x ? w.x : w.h, p, of_x ? group : group - x_groups, samples, unit);
        }
      });
      for (std::int64_t unit = begin; unit < stop; ++unit) {
        const std::int64_t group = unit - p * per_panel;
        const bool of_x = group < x_groups;
        scatter(w, of_x ? w.x : w.h, p, of_x ? group : group - x_groups, unit);
      }
      begin = stop;
    }
  }

  static constexpr std::int64_t groups(std::int64_t features) { return (features + kGroup<Cell> - 1) / kGroup<Cell>; }
  static T* sums_of(const WeightGradients<T, O>& w, std::int64_t unit) {
    return w.sums + unit * kGroup<Cell> * Cell::kWeightGates * kPanel<T>;
  }

 private:
  template <int kBytes>
  static void add(const WeightGradients<T, O>& w, const Features<T, O>& a, std::int64_t p, std::int64_t group,
                  const Samples& samples, std::int64_t unit) {
    constexpr std::int64_t kL = kPanel<T>;
    const std::int64_t feature = group * kGroup<Cell>;
    const std::int64_t count = std::min(kGroup<Cell>, a.count - feature);
    for (std::int64_t lane = 0; lane < kL; lane += simd::kLanes<simd::Vector<T, kBytes>>) {
      for_tiles<tile_rows<kBytes>(Cell::kWeightGates)>(0, count, [&]<int kRows>(std::int64_t r) {
        T* sums = sums_of(w, unit) + r * Cell::kWeightGates * kL;
        weight_tile<Cell, kBytes, kRows>(w, a, p, lane, feature + r, samples, sums);
      });
    }
  }

  static void scatter(const WeightGradients<T, O>& w, const Features<T, O>& a, std::int64_t p, std::int64_t group,
                      std::int64_t unit) {
    constexpr std::int64_t kL = kPanel<T>;
    const T* sums = sums_of(w, unit);
    const std::int64_t feature = group * kGroup<Cell>;
    const std::int64_t count = std::min(kGroup<Cell>, a.count - feature);
    for (int j = 0; j < Cell::kWeightGates; ++j) {
      for (std::int64_t l = 0; l < units_in<T>(p, w.shape.hidden); ++l) {
        T* row = a.gradient + (a.gates[j] * w.shape.hidden + p * kL + l) * a.count + feature;
        for (std::int64_t r = 0; r < count; ++r) row[r] = sums[(r * Cell::kWeightGates + j) * kL + l];
      }
    }
  }
};

// Lets the products take pairs.
template <class Cell>
void take_pairs(WeightGradients<float, Bf16Pair>& w, const PairedSamples& samples, const RecurrenceInputs& in,
                const void* y, ParallelFor parallel_for) {
  const RecurrenceShape& s = w.shape;
  const std::int64_t row = Cell::kGates * kPanel<float>;
  const std::vector<float> zeros(static_cast<std::size_t>(std::max({s.inputs, s.hidden, row})));
  const Rounding rounding{.shape = s,
                          .in = in,
                          .activity = w.activity,
                          .gates = Cell::kGates,
                          .d = w.d,
                          .y = static_cast<const float*>(y),
                          .zeros = zeros.data(),
                          .to = samples};
  auto range = [&](std::int64_t begin, std::int64_t end) { best<round_samples>(rounding, begin, end); };
  for_ranges(parallel_for, s.steps, grain(kCopiesPerThread, s.sequences * (s.inputs + s.hidden + w.panels * row)),
             range);
  w.operands = samples.pairs;
  w.operands_activity = {.steps = s.steps, .reverse = s.reverse, .lengths = samples.lengths.data()};
  w.d_operands = samples.d.data();
  const auto take = [&](auto& features, const Scratch<Bf16Pair>& from) {
    features.data = from.data();
    features.step = samples.pairs * features.count;
    features.sequence = features.count;
  };
  take(w.x, samples.x);
  take(w.h, samples.h);
}

template <class T, class O, class Cell>
void all_gradients(const RecurrenceShape& s, const RecurrenceInputs& in, const RecurrenceGradients& g, const T* d,
                   ParallelFor parallel_for) {
  using Range = WeightRange<T, O, Cell>;
  const Activity activity{.steps = s.steps, .reverse = s.reverse, .lengths = in.lengths};
  const std::int64_t panels = panel_count<T>(s.hidden);
  const std::int64_t units = panels * (Range::groups(s.inputs) + Range::groups(s.hidden));
  const Scratch<T> sums(units * kGroup<Cell> * Cell::kWeightGates * kPanel<T>);
  WeightGradients<T, O> w{.shape = s,
                          .activity = activity,
                          .panels = panels,
                          .d = d,
                          .operands = s.sequences,
                          .operands_activity = activity,
                          .d_operands = nullptr,
                          .x = {.data = nullptr,
                                .step = in.x_step,
                                .sequence = in.x_sequence,
                                .count = s.inputs,
                                .start = nullptr,
                                .gradient = static_cast<T*>(g.dw_ih),
                                .gates = Cell::kInputGates,
                                .first = Cell::kInputFirst},
                          .h = {.data = nullptr,
                                .step = s.sequences * s.hidden,
                                .sequence = s.hidden,
                                .count = s.hidden,
                                .start = nullptr,
                                .gradient = static_cast<T*>(g.dw_hh),
                                .gates = Cell::kHiddenGates,
                                .first = Cell::kHiddenFirst},
                          .db_ih = static_cast<T*>(g.db_ih),
                          .db_hh = static_cast<T*>(g.db_hh),
                          .sums = sums.data()};
  const std::optional<PairedSamples> samples = paired_samples<O>(s, activity, Cell::kGates);
  if constexpr (kNumbers<O> == 1) {
    w.d_operands = d;
    w.x.data = static_cast<const T*>(in.x);
    w.h.data = static_cast<const T*>(g.y);
    w.h.start = static_cast<const T*>(in.h0);
  } else if (samples) {
    take_pairs<Cell>(w, *samples, in, g.y, parallel_for);
  }
  auto range = [&](std::int64_t begin, std::int64_t end) { run_best_for<O, Range>(w, begin, end); };
  const std::int64_t products = s.steps * w.operands * kGroup<Cell> * Cell::kWeightGates * kPanel<T>;
  for_ranges(parallel_for, units, grain(kProductsPerThread, products), range);
}

}  // namespace

void weight_gradients(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                      const RecurrenceGradients& gradients, const void* d, ParallelFor parallel_for) {
  if (gradients.dw_hh == nullptr) return;  // dw_ih may be empty, and null for that
  dispatch_cell(shape, [&]<class T, class O, class C>(Type<T>, Type<O>, Type<C>) {
    all_gradients<T, O, typename C::Sums>(shape, inputs, gradients, static_cast<const T*>(d), parallel_for);
  });
}

}  // namespace fastseq::recurrence
