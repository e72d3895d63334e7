// Single time steps: against an LSTM and a linear layer written out.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "check.h"
#include "core/step/predict.h"
#include "noise.h"
#include "ranges.h"

namespace fastseq::step {

namespace {

constexpr std::int64_t kInputs = 3;
constexpr std::int64_t kHidden = 5;
constexpr std::int64_t kOutputs = 2;
constexpr std::int64_t kSequences = 4;
constexpr double kCenter[] = {1, -2, 3};
constexpr double kScale[] = {2, 0.5, 3};

using testing::noise;

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

template <class T>
struct Weighted {
  std::vector<T> w_ih = noise<T>(4 * kHidden * kInputs, 1);
  std::vector<T> w_hh = noise<T>(4 * kHidden * kHidden, 2);
  std::vector<T> b_ih = noise<T>(4 * kHidden, 3);
  std::vector<T> b_hh = noise<T>(4 * kHidden, 4);
  std::vector<T> w = noise<T>(kOutputs * kHidden, 5);
  std::vector<T> b = noise<T>(kOutputs, 6);

  Model<T> model() {
    std::vector<std::unique_ptr<Layer<T>>> layers;
    const RecurrentOptions options{.cell = Cell::kLstm,
                                   .inputs = kInputs,
                                   .hidden = kHidden,
                                   .layers = 1,
                                   .biases = true,
                                   .bidirectional = false,
                                   .dropout = 0,
                                   .takes_lengths = true,
                                   .carries = true,
                                   .number = 0};
    layers.push_back(make_recurrent<T>(
        options, {{w_ih.data(), nullptr}, {w_hh.data(), nullptr}, {b_ih.data(), nullptr}, {b_hh.data(), nullptr}}));
    layers.push_back(make_dropout<T>(0.5, kHidden, 1));
    layers.push_back(make_linear<T>(kHidden, kOutputs, {w.data(), nullptr}, {b.data(), nullptr}));
    return Model<T>(std::move(layers), serial_for);
  }

  // The next step of one sequence, whose x is scaled already.
  std::vector<double> next(std::span<const double> x, std::span<double> h, std::span<double> c) const {
    std::vector<double> sums(4 * kHidden);
    for (std::size_t g = 0; g < sums.size(); ++g) {
      sums[g] = static_cast<double>(b_ih[g]) + static_cast<double>(b_hh[g]);
      for (std::size_t i = 0; i < x.size(); ++i) sums[g] += static_cast<double>(w_ih[g * kInputs + i]) * x[i];
      for (std::size_t i = 0; i < h.size(); ++i) sums[g] += static_cast<double>(w_hh[g * kHidden + i]) * h[i];
    }
    for (std::size_t u = 0; u < kHidden; ++u) {
      c[u] = sigmoid(sums[kHidden + u]) * c[u] + sigmoid(sums[u]) * std::tanh(sums[2 * kHidden + u]);
      h[u] = sigmoid(sums[3 * kHidden + u]) * std::tanh(c[u]);
    }
    std::vector<double> y(kOutputs);
    for (std::size_t k = 0; k < y.size(); ++k) {
      y[k] = static_cast<double>(b[k]);
      for (std::size_t u = 0; u < kHidden; ++u) y[k] += static_cast<double>(w[k * kHidden + u]) * h[u];
      y[k] = y[k] * kScale[k] + kCenter[k];
    }
    return y;
  }
};

template <class T, class X, class Y>
void check_steps(double tolerance) {
  Weighted<T> weighted;
  Model<T> model = weighted.model();
  std::vector<T> h(kSequences * kHidden);
  std::vector<T> c(kSequences * kHidden);
  T* const state[] = {h.data(), c.data()};
  model.set_state(state);
  StepPredictor<T> predictor(model, kInputs, {kCenter, kScale}, {kCenter, kScale});
  std::vector<double> wanted_h(h.size());
  std::vector<double> wanted_c(c.size());
  for (std::uint32_t t = 0; t < 6; ++t) {
    std::vector<X> x = noise<X>(kSequences * kInputs, 10 + t);
    std::vector<Y> y(kSequences * kOutputs);
    // What is not finite changes nothing.
    const X before = std::exchange(x[7], std::numeric_limits<X>::quiet_NaN());
    CHECK(!predictor.run(x.data(), kSequences, y.data()));
    x[7] = std::numeric_limits<X>::infinity();
    CHECK(!predictor.run(x.data(), kSequences, y.data()));
    CHECK(y == std::vector<Y>(y.size()));
    x[7] = before;
    CHECK(predictor.run(x.data(), kSequences, y.data()));
    for (std::size_t n = 0; n < kSequences; ++n) {
      std::vector<double> scaled(kInputs);
      for (std::size_t f = 0; f < kInputs; ++f) {
        scaled[f] = (static_cast<double>(x[n * kInputs + f]) - kCenter[f]) / kScale[f];
      }
      const std::vector<double> wanted = weighted.next(scaled, std::span(wanted_h).subspan(n * kHidden, kHidden),
                                                       std::span(wanted_c).subspan(n * kHidden, kHidden));
      for (std::size_t k = 0; k < kOutputs; ++k) {
        CHECK(std::abs(static_cast<double>(y[n * kOutputs + k]) - wanted[k]) < tolerance);
      }
    }
    for (std::size_t i = 0; i < h.size(); ++i) {
      CHECK(std::abs(static_cast<double>(h[i]) - wanted_h[i]) < tolerance);
      CHECK(std::abs(static_cast<double>(c[i]) - wanted_c[i]) < tolerance);
    }
  }
}

}  // namespace

TEST(steps_are_those_written_out) {
  testing::for_every_width([] {
    check_steps<double, double, double>(1e-13);
    check_steps<double, float, double>(1e-13);
    check_steps<float, float, float>(1e-5);
    check_steps<float, double, double>(1e-5);
    check_steps<float, double, float>(1e-5);
  });
}

TEST(inputs_beyond_fp32_are_not_finite_there) {
  Weighted<float> weighted;
  Model<float> model = weighted.model();
  std::vector<float> state(kHidden);
  float* const states[] = {state.data(), state.data()};
  model.set_state(states);
  const double x[] = {1e300, 0, 0};
  float y[kOutputs];
  CHECK(!StepPredictor<float>(model, kInputs).run(x, 1, y));
}

TEST(weights_are_read_at_each_step) {
  std::vector<double> w = {2};
  std::vector<std::unique_ptr<Layer<double>>> layers;
  layers.push_back(make_linear<double>(1, 1, {w.data(), nullptr}, {}));
  Model<double> model(std::move(layers), serial_for);
  StepPredictor<double> predictor(model, 1);
  const double x = 3;
  double y = 0;
  CHECK(predictor.run(&x, 1, &y));
  CHECK_EQ(y, 6.0);
  w[0] = 5;
  CHECK(predictor.run(&x, 1, &y));
  CHECK_EQ(y, 15.0);
}

}  // namespace fastseq::step
