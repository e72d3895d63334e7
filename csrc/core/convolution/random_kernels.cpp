#include "core/convolution/random_kernels.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/base/isa.h"
#include "core/base/simd.h"

namespace fastseq {

namespace {

// Least comparisons worth waking a thread for.
constexpr std::int64_t kGrain = 256 * 1024;
// Elements of the widest vector: memory behind a sequence that may be read.
constexpr std::int64_t kBehind = 16;

// Writes a sequence's features as rows.
template <class T>
void copy_transposed(const T* x, std::int64_t x_step, std::int64_t steps, std::int64_t features, T* rows) {
  for (std::int64_t t = 0; t < steps; ++t) {
    for (std::int64_t f = 0; f < features; ++f) rows[f * steps + t] = x[t * x_step + f];
  }
}

template <class T>
void add_row(const T* row, std::int64_t steps, T* sum) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t t = 0; t < steps; ++t) sum[t] += row[t];
}

template <class T>
bool all_finite(const T* sum, std::int64_t steps) {
  std::int64_t others = 0;
  // NOLINTNEXTLINE(misc-redundant-expression): not 0 unless finite
  for (std::int64_t t = 0; t < steps; ++t) others += sum[t] - sum[t] == T{0} ? 0 : 1;
  return others == 0;
}

template <class T>
struct Series {
  const T* values;  // zeros before and behind, as far as kernels reach
  std::int64_t steps;
  std::int64_t dilation;
  const T* thresholds;  // (kKernelChoices,)
};

using Counts = std::array<std::int64_t, kKernelChoices>;

// Counts the steps at which each kernel's convolution exceeds its threshold.
struct CountAbove {
  template <int kBytes, class T>
  static void run(const Series<T>& series, Counts* const& counts) {
    using V = simd::Vector<T, kBytes>;
    using Truth = decltype(V{} > V{});  // -1 where true
    constexpr std::int64_t kL = simd::kLanes<V>;
    constexpr T kWeight = T{-1} / T{3};
    constexpr int kTaps = kKernelTaps;
    std::array<Truth, kKernelChoices> sums{};
    for (std::int64_t t = 0; t < series.steps; t += kL) {
      // A kernel's sum is that of three taps and this base, a third of all taps: nothing is multiplied for each kernel.
      V taps[kTaps];
      for (int j = 0; j < kTaps; ++j) simd::load(taps[j], series.values + t + (j - kTaps / 2) * series.dilation);
      V base = taps[0];
      for (int j = 1; j < kTaps; ++j) base += taps[j];
      base *= kWeight;
      if (series.steps - t < kL) {  // nothing is above a threshold behind the end
        alignas(sizeof(V)) T lanes[kL];
        simd::store(lanes, base);
        std::fill(lanes + (series.steps - t), lanes + kL, -std::numeric_limits<T>::infinity());
        simd::load(base, lanes);
      }
      int kernel = 0;
#pragma GCC unroll 9
      for (int a = 0; a < kTaps; ++a) {
        const V first = base + taps[a];
#pragma GCC unroll 9
        for (int b = a + 1; b < kTaps; ++b) {
          const V second = first + taps[b];
#pragma GCC unroll 9
          for (int c = b + 1; c < kTaps; ++c) {
            const V convolved = second + taps[c];
            const auto k = static_cast<std::size_t>(kernel++);
            sums[k] += convolved > series.thresholds[k] - V{};
          }
        }
      }
    }
    for (std::size_t k = 0; k < kKernelChoices; ++k) {
      std::int64_t count = 0;
      for (std::int64_t lane = 0; lane < kL; ++lane) count -= sums[k][lane];
      (*counts)[k] = count;
    }
  }
};

// How far the kernels of any group reach to either side.
std::int64_t reach_of(const RandomKernelsShape& shape, const RandomKernelsInputs& inputs) {
  return kKernelTaps / 2 * *std::max_element(inputs.dilations, inputs.dilations + shape.groups);
}

// The features of one sequence.
template <class T>
class Sequence {
 public:
  Sequence(const RandomKernelsShape& shape, const RandomKernelsInputs& inputs)
      : shape_(shape),
        inputs_(inputs),
        reach_(reach_of(shape, inputs)),
        rows_(static_cast<std::size_t>(shape.steps * shape.features)),
        values_(static_cast<std::size_t>(3 * reach_ + shape.steps + kBehind)) {}

  void run(std::int64_t n, T* out) {
    const std::int64_t length = inputs_.lengths == nullptr ? shape_.steps : inputs_.lengths[n];
    const T* x = static_cast<const T*>(inputs_.x) + n * inputs_.x_sequence;
    best<copy_transposed<T>>(x, inputs_.x_step, length, shape_.features, rows_.data());
    for (std::int64_t g = 0; g < shape_.groups; ++g, out += kKernelChoices) run_group(g, length, out);
  }

 private:
  void run_group(std::int64_t g, std::int64_t length, T* out) {
    std::ranges::fill(values_, T{0});
    T* const sum = values_.data() + reach_;
    for (std::int64_t m = 0; m < shape_.members; ++m) {
      const std::int64_t f = inputs_.members[g * shape_.members + m];
      if (f < shape_.features) best<add_row<T>>(rows_.data() + f * length, length, sum);
    }
    if (!best<all_finite<T>>(sum, length)) {
      std::fill_n(out, kKernelChoices, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    const std::int64_t dilation = inputs_.dilations[g];
    const T* thresholds = static_cast<const T*>(inputs_.thresholds) + g * kKernelChoices;
    const std::int64_t all = std::max(length, shape_.least_steps);
    // Further behind the end all convolutions are zero.
    const std::int64_t some = std::min(all, length + kKernelTaps / 2 * dilation);
    Counts counts{};
    const Series<T> series{.values = sum, .steps = some, .dilation = dilation, .thresholds = thresholds};
    run_best<CountAbove>(series, &counts);
    for (std::size_t k = 0; k < kKernelChoices; ++k) {
      const std::int64_t count = counts[k] + (T{0} > thresholds[k] ? all - some : 0);
      out[k] = static_cast<T>(count) / static_cast<T>(all);
    }
  }

  const RandomKernelsShape& shape_;
  const RandomKernelsInputs& inputs_;
  std::int64_t reach_;
  std::vector<T> rows_;
  std::vector<T> values_;
};

template <class T>
void run_all(const RandomKernelsShape& shape, const RandomKernelsInputs& inputs, T* out, ParallelFor parallel_for) {
  const std::int64_t numel = shape.groups * kKernelChoices;
  auto body = [&](std::int64_t begin, std::int64_t end) {
    Sequence<T> sequence(shape, inputs);
    for (std::int64_t n = begin; n < end; ++n) sequence.run(n, out + n * numel);
  };
  // `least_steps` may be any number: it does not count beyond what kernels reach.
  const std::int64_t most = shape.steps + reach_of(shape, inputs);
  const std::int64_t comparisons = std::min(std::max(shape.steps, shape.least_steps), most) * numel;
  for_ranges(parallel_for, shape.sequences, std::max<std::int64_t>(kGrain / comparisons, 1), body);
}

}  // namespace

void random_kernels(const RandomKernelsShape& shape, const RandomKernelsInputs& inputs, void* out,
                    ParallelFor parallel_for) {
  if (shape.sequences == 0 || shape.groups == 0) return;
  if (shape.dtype == DType::kFloat64) {
    run_all(shape, inputs, static_cast<double*>(out), parallel_for);
  } else {
    run_all(shape, inputs, static_cast<float*>(out), parallel_for);
  }
}

}  // namespace fastseq
