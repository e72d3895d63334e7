#include <algorithm>

#include "core/base/isa.h"
#include "core/base/simd.h"
#include "core/recurrence/tiles.h"
#include "core/step/buffer.h"
#include "core/step/layer.h"

namespace fastseq::step {

namespace {

using recurrence::add_products;
using recurrence::for_tiles;
using recurrence::kPanel;
using recurrence::panel_count;
using recurrence::tile_rows;
using recurrence::units_in;

constexpr std::int64_t kProductsPerThread = 512 * 1024;

// y[i] = a[i] b + bias for rows i: b is in panels of columns, [panel][inner][L], padded.
template <class T>
struct Product {
  Rows<T> a;
  std::int64_t sequences;  // rows of a step
  std::int64_t inner;
  std::int64_t columns;
  const T* panels;
  const T* bias;  // padded, or null
  T* y;
};

template <class T>
struct ProductRange {
  template <int kBytes>
  static void run(const Product<T>& f, std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t t = begin / f.sequences;
      const std::int64_t stop = std::min(end, (t + 1) * f.sequences);
      const T* const a = f.a.data + t * f.a.step + (begin - t * f.sequences) * f.a.sequence;
      rows<kBytes>(f, a, f.y + begin * f.columns, stop - begin);
      begin = stop;
    }
  }

 private:
  template <int kBytes>
  static void rows(const Product<T>& f, const T* a, T* y, std::int64_t count) {
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
template <class T>
struct Gradient {
  Rows<T> x;
  std::int64_t steps;
  std::int64_t sequences;
  std::int64_t inputs;
  std::int64_t outputs;
  const T* dy;  // readable beyond its end
  T* dw;        // (outputs, inputs)
  T* db;        // or null
};

template <class T>
struct GradientRange {
  // Time steps are taken in blocks whose inputs stay in the cache: each tile of features reads them all again.
  template <int kBytes>
  static void run(const Gradient<T>& g, std::int64_t begin, std::int64_t end) {
    const std::int64_t step = std::max<std::int64_t>(g.sequences * g.inputs, 1);
    const std::int64_t each = std::max<std::int64_t>(kBlock / step, 1);
    if (g.steps == 0) block<kBytes>(g, begin, end, 0, 0);
    for (std::int64_t t = 0; t < g.steps; t += each) {
      block<kBytes>(g, begin, end, t, std::min(t + each, g.steps));
    }
  }

 private:
  static constexpr std::int64_t kBlock = 16 * 1024;  // inputs

  template <int kBytes>
  static void block(const Gradient<T>& g, std::int64_t begin, std::int64_t end, std::int64_t from, std::int64_t to) {
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
                               g.dy + t * g.sequences * g.outputs + first, g.outputs, g.sequences);
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
    T* const panels = forward_panels_.reserve(panel_count<T>(outputs_) * inputs_ * kL);
    for (std::int64_t o = 0; o < outputs_; ++o) {
      T* const to = panels + o / kL * inputs_ * kL + o % kL;
      for (std::int64_t q = 0; q < inputs_; ++q) to[q * kL] = w_.value[o * inputs_ + q];
    }
    T* bias = nullptr;
    if (bias_.value != nullptr) {
      bias = padded_bias_.reserve(panel_count<T>(outputs_) * kL);
      std::copy_n(bias_.value, outputs_, bias);
    }
    T* const y = y_.reserve(chunk.rows() * outputs_);
    product(chunk, {x, chunk.sequences, inputs_, outputs_, panels, bias, y});
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& x, T* dy, bool wants_dx) override {
    constexpr std::int64_t kL = kPanel<T>;
    T* dx = nullptr;
    if (wants_dx) {
      T* const panels = backward_panels_.reserve(panel_count<T>(inputs_) * outputs_ * kL);
      for (std::int64_t o = 0; o < outputs_; ++o) {
        for (std::int64_t q = 0; q < inputs_; ++q) {
          panels[(q / kL * outputs_ + o) * kL + q % kL] = w_.value[o * inputs_ + q];
        }
      }
      dx = dx_.reserve(chunk.rows() * inputs_);
      const Rows<T> rows{dy, chunk.sequences * outputs_, outputs_};
      product(chunk, {rows, chunk.sequences, outputs_, inputs_, panels, nullptr, dx});
    }
    const Gradient<T> gradient{x, chunk.steps, chunk.sequences, inputs_, outputs_, dy, w_.gradient, bias_.gradient};
    auto range = [&](std::int64_t begin, std::int64_t end) { run_best<GradientRange<T>>(gradient, begin, end); };
    const std::int64_t each = std::max<std::int64_t>(chunk.rows() * panel_count<T>(outputs_) * kL, 1);
    for_ranges(chunk.parallel_for, inputs_ + 1, std::max<std::int64_t>(kProductsPerThread / each, 1), range);
    return dx;
  }

 private:
  static void product(const Chunk& chunk, Product<T> f) {
    if (f.a.step == chunk.sequences * f.a.sequence) f.sequences = chunk.rows();
    auto range = [&](std::int64_t begin, std::int64_t end) { run_best<ProductRange<T>>(f, begin, end); };
    const std::int64_t each = std::max<std::int64_t>(f.inner * panel_count<T>(f.columns) * kPanel<T>, 1);
    for_ranges(chunk.parallel_for, chunk.rows(), std::max<std::int64_t>(kProductsPerThread / each, 1), range);
  }

  std::int64_t inputs_;
  std::int64_t outputs_;
  Weights<T> w_;
  Weights<T> bias_;
  Buffer<T> forward_panels_;  // padding stays zero
  Buffer<T> backward_panels_;
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
