#include <algorithm>
#include <type_traits>

#include "core/base/bf16_pair.h"
#include "core/base/isa.h"
#include "core/base/simd.h"
#include "core/recurrence/tiles.h"
#include "core/step/buffer.h"
#include "core/step/layer.h"

namespace fastseq::step {

namespace {

using recurrence::add_products;
using recurrence::for_tiles;
using recurrence::kNumbers;
using recurrence::kPanel;
using recurrence::operand_at;
using recurrence::operand_count;
using recurrence::panel_count;
using recurrence::run_best_for;
using recurrence::tile_rows;
using recurrence::units_in;

// Calls fn(first, row, count) for runs of rows [begin, end) that are one after another: rows [first, first + count),
// the first of which is at `row`.
template <class T, class Fn>
inline void for_row_runs(const Rows<T>& rows, std::int64_t sequences, std::int64_t begin, std::int64_t end,
                         const Fn& fn) {
  while (begin < end) {
    const std::int64_t t = begin / sequences;
    const std::int64_t stop = std::min(end, (t + 1) * sequences);
    fn(begin, rows.data + t * rows.step + (begin - t * sequences) * rows.sequence, stop - begin);
    begin = stop;
  }
}

// y[i] = a[i] b + bias for rows i: b is in panels of columns, [panel][inner][L], padded.
template <class T, class O>
struct Product {
  Rows<O> a;
  std::int64_t sequences;  // rows of a step
  std::int64_t inner;      // operands
  std::int64_t columns;
  const O* panels;
  const T* bias;  // padded, or null
  T* y;
};

template <class T, class O>
struct ProductRange {
  template <int kBytes>
  static void run(const Product<T, O>& f, std::int64_t begin, std::int64_t end) {
    for_row_runs(f.a, f.sequences, begin, end, [&](std::int64_t first, const O* a, std::int64_t count) {
      rows<kBytes>(f, a, f.y + first * f.columns, count);
    });
  }

 private:
  template <int kBytes>
  static void rows(const Product<T, O>& f, const O* a, T* y, std::int64_t count) {
    using V = simd::Vector<T, kBytes>;
    constexpr std::int64_t kL = kPanel<T>;
    for (std::int64_t p = 0; p < panel_count<T>(f.columns); ++p) {
      const std::int64_t units = units_in<T>(p, f.columns);
      for (std::int64_t lane = 0; lane < units; lane += simd::kLanes<V>) {
        for_tiles<tile_rows<kBytes>(1)>(0, count, [&]<int kRows>(std::int64_t n) {
          V sums[kRows][1];
          V start{};
          if (f.bias != nullptr) simd::load(start, f.bias + p * kL + lane);
          for (int r = 0; r < kRows; ++r) sums[r][0] = start;
          add_products<0, 1>(sums, a + n * f.a.sequence, f.a.sequence, 1, f.panels + p * f.inner * kL + lane, kL,
                             f.inner);
          T* const to = y + n * f.columns + p * kL + lane;
#pragma GCC unroll 12  // the sums stay in registers
          for (int r = 0; r < kRows; ++r) simd::store_first(to + r * f.columns, sums[r][0], units - lane);
        });
      }
    }
  }
};

// Gradients of the weights and the bias for inputs [begin, end), the bias's being those of the last input + 1.
template <class T, class O>
struct Gradient {
  Rows<O> x;
  std::int64_t steps;
  std::int64_t sequences;
  std::int64_t operands;  // of a step: its sequences, or pairs of them
  std::int64_t inputs;
  std::int64_t outputs;
  const O* dy_operands;  // both are readable beyond their ends
  const T* dy;
  T* dw;  // (outputs, inputs)
  T* db;  // or null
};

template <class T, class O>
struct GradientRange {
  // Time steps are taken in blocks whose inputs stay in the cache: each tile of features reads them all again.
  template <int kBytes>
  static void run(const Gradient<T, O>& g, std::int64_t begin, std::int64_t end) {
    const std::int64_t step = std::max<std::int64_t>(g.operands * g.inputs, 1);
    const std::int64_t each = std::max<std::int64_t>(kBlock / step, 1);
    if (g.steps == 0) block<kBytes>(g, begin, end, 0, 0);
    for (std::int64_t t = 0; t < g.steps; t += each) {
      block<kBytes>(g, begin, end, t, std::min(t + each, g.steps));
    }
  }

 private:
  static constexpr std::int64_t kBlock = 16 * 1024;  // inputs

  template <int kBytes>
  static void block(const Gradient<T, O>& g, std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to) {
    using V = simd::Vector<T, kBytes>;
    constexpr std::int64_t kL = kPanel<T>;
    for (std::int64_t p = 0; p < panel_count<T>(g.outputs); ++p) {
      const std::int64_t units = units_in<T>(p, g.outputs);
      for (std::int64_t lane = 0; lane < units; lane += simd::kLanes<V>) {
        const std::int64_t first = p * kL + lane;
        const std::int64_t count = std::min<std::int64_t>(units - lane, simd::kLanes<V>);
        for_tiles<tile_rows<kBytes>(1)>(begin, std::min(end, g.inputs), [&]<int kRows>(std::int64_t feature) {
          V sums[kRows][1] = {};
          for (std::int64_t t = from; t < to; ++t) {
            add_products<0, 1>(sums, g.x.data + t * g.x.step + feature, 1, g.x.sequence,
                               g.dy_operands + t * g.operands * g.outputs + first, g.outputs, g.operands);
          }
          for (int r = 0; r < kRows; ++r) {
            scatter(sums[r][0], count, g.dw + first * g.inputs + feature + r, g.inputs, from > 0);
          }
        });
        if (end > g.inputs && g.db != nullptr) {
          V sum{};
          for (std::int64_t i = from * g.sequences; i < to * g.sequences; ++i) {
            V d;
            simd::load(d, g.dy + i * g.outputs + first);
            sum += d;
          }
          scatter(sum, count, g.db + first, 1, from > 0);
        }
      }
    }
  }

  template <class V>
  static void scatter(const V& v, std::int64_t count, T* to, std::int64_t step, bool adds) {
    alignas(V) T lanes[simd::kLanes<V>];
    simd::store(lanes, v);
    for (std::int64_t l = 0; l < count; ++l) to[l * step] = (adds ? to[l * step] : T{}) + lanes[l];
  }
};

template <class T>
class Linear : public Layer<T> {
 public:
  Linear(std::int64_t inputs, std::int64_t outputs, Weights<T> w, Weights<T> bias)
      : inputs_(inputs), outputs_(outputs), w_(w), bias_(bias) {}

  std::int64_t outputs() const override { return outputs_; }
  std::vector<T*> gradients() const override { return {w_.gradient, bias_.gradient}; }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    constexpr std::int64_t kL = kPanel<T>;
    T* bias = nullptr;
    if (bias_.value != nullptr) {
      bias = padded_bias_.reserve(panel_count<T>(outputs_) * kL);
      std::copy_n(bias_.value, outputs_, bias);
    }
    T* const y = y_.reserve(chunk.rows() * outputs_);
    with_parts(chunk, [&]<class O>(Parts<O>& parts) {
      const std::int64_t operands = operand_count<O>(inputs_);
      O* const panels = parts.forward_panels.reserve(panel_count<T>(outputs_) * operands * kL);
      for (std::int64_t o = 0; o < outputs_; ++o) {
        O* const to = panels + o / kL * operands * kL + o % kL;
        const T* const row = w_.value + o * inputs_;
        for (std::int64_t q = 0; q < operands; ++q) to[q * kL] = operand_at<O>(row, 1, inputs_, q);
      }
      product(chunk, parts, x, inputs_, panels, bias, outputs_, y);
    });
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& x, T* dy, bool wants_dx) override {
    constexpr std::int64_t kL = kPanel<T>;
    T* const dx = wants_dx ? dx_.reserve(chunk.rows() * inputs_) : nullptr;
    with_parts(chunk, [&]<class O>(Parts<O>& parts) {
      if (wants_dx) {
        const std::int64_t operands = operand_count<O>(outputs_);
        O* const panels = parts.backward_panels.reserve(panel_count<T>(inputs_) * operands * kL);
        for (std::int64_t o = 0; o < operands; ++o) {
          for (std::int64_t q = 0; q < inputs_; ++q) {
            panels[(q / kL * operands + o) * kL + q % kL] = operand_at<O>(w_.value + q, inputs_, outputs_, o);
          }
        }
        const Rows<T> rows{dy, chunk.sequences * outputs_, outputs_};
        product(chunk, parts, rows, outputs_, panels, nullptr, inputs_, dx);
      }
      const Gradient<T, O> gradient = gradient_of(chunk, parts, x, dy);
      auto range = [&](std::int64_t begin, std::int64_t end) {
        run_best_for<O, GradientRange<T, O>>(gradient, begin, end);
      };
      for_ranges(chunk.parallel_for, inputs_ + 1,
                 grain(kProductsPerThread, chunk.rows() * panel_count<T>(outputs_) * kL), range);
    });
    return dx;
  }

 private:
  // What products multiply.
  template <class O>
  struct Parts {
    Buffer<O> forward_panels;  // padding stays zero
    Buffer<O> backward_panels;
    // Rounded, if operands are pairs: rows of a product, and pairs of sequences for the gradients.
    Buffer<O> rows;
    Buffer<O> x;
    Buffer<O> dy;
  };

  // Calls fn with the parts for a chunk's products.
  template <class Fn>
  void with_parts(const Chunk& chunk, const Fn& fn) {
    if constexpr (std::is_same_v<T, float>) {
      if (chunk.bf16 && std::min(inputs_, outputs_) >= kLeastUnitsForBf16) return fn(pairs_);
    }
    fn(parts_);
  }

  template <class O>
  static void product(const Chunk& chunk, Parts<O>& parts, const Rows<T>& a, std::int64_t inner, const O* panels,
                      const T* bias, std::int64_t columns, T* y) {
    const std::int64_t operands = operand_count<O>(inner);
    const bool even = a.step == chunk.sequences * a.sequence;  // all rows are equally far apart
    const std::int64_t sequences = even ? chunk.rows() : chunk.sequences;
    Product<T, O> f{
        .a = {}, .sequences = sequences, .inner = operands, .columns = columns, .panels = panels, .bias = bias, .y = y};
    if constexpr (kNumbers<O> == 1) {
      f.a = a;
    } else {
      f.a = {.data = parts.rows.reserve(chunk.rows() * operands), .step = 0, .sequence = operands};
      f.sequences = chunk.rows();
    }
    auto range = [&](std::int64_t begin, std::int64_t end) {
      if constexpr (kNumbers<O> == 2) {
        for_row_runs(a, sequences, begin, end, [&](std::int64_t first, const T* from, std::int64_t count) {
          best<round_rows>(from, a.sequence, count, inner, parts.rows.data() + first * operands, operands);
        });
      }
      run_best_for<O, ProductRange<T, O>>(f, begin, end);
    };
    for_ranges(chunk.parallel_for, chunk.rows(),
               grain(kProductsPerThread, operands * panel_count<T>(columns) * kPanel<T>), range);
  }

  template <class O>
  Gradient<T, O> gradient_of(const Chunk& chunk, Parts<O>& parts, const Rows<T>& x, const T* dy) const {
    Gradient<T, O> gradient{.x = {},
                            .steps = chunk.steps,
                            .sequences = chunk.sequences,
                            .operands = chunk.sequences,
                            .inputs = inputs_,
                            .outputs = outputs_,
                            .dy_operands = nullptr,
                            .dy = dy,
                            .dw = w_.gradient,
                            .db = bias_.gradient};
    if constexpr (kNumbers<O> == 1) {
      gradient.x = x;
      gradient.dy_operands = dy;
    } else {
      const std::int64_t pairs = (chunk.sequences + 1) / 2;
      O* const x_pairs = parts.x.reserve(chunk.steps * pairs * inputs_);
      O* const dy_pairs = parts.dy.reserve(chunk.steps * pairs * outputs_);
      const Rows<T> dy_rows{.data = dy, .step = chunk.sequences * outputs_, .sequence = outputs_};
      auto range = [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
          best<pair_rows>(x.data + t * x.step, x.sequence, chunk.sequences, inputs_, x_pairs + t * pairs * inputs_);
          best<pair_rows>(dy_rows.data + t * dy_rows.step, outputs_, chunk.sequences, outputs_,
                          dy_pairs + t * pairs * outputs_);
        }
      };
      for_ranges(chunk.parallel_for, chunk.steps, grain(kCopiesPerThread, chunk.sequences * (inputs_ + outputs_)),
                 range);
      gradient.x = {.data = x_pairs, .step = pairs * inputs_, .sequence = inputs_};
      gradient.operands = pairs;
      gradient.dy_operands = dy_pairs;
    }
    return gradient;
  }

  std::int64_t inputs_;
  std::int64_t outputs_;
  Weights<T> w_;
  Weights<T> bias_;
  Parts<T> parts_;
  Parts<Bf16Pair> pairs_;
  Buffer<T> padded_bias_;
  Buffer<T> y_;
  Buffer<T> dx_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_linear(std::int64_t inputs, std::int64_t outputs, Weights<T> w, Weights<T> bias) {
  return std::make_unique<Linear<T>>(inputs, outputs, w, bias);
}

template std::unique_ptr<Layer<float>> make_linear(std::int64_t, std::int64_t, Weights<float>, Weights<float>);
template std::unique_ptr<Layer<double>> make_linear(std::int64_t, std::int64_t, Weights<double>, Weights<double>);

}  // namespace fastseq::step
