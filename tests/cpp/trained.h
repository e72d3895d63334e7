// Small models with their training steps, and their gradients beside difference quotients.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "check.h"
#include "core/step/step.h"
#include "noise.h"

namespace fastseq::step {

using Values = std::vector<double>;

inline std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

using testing::noise;

constexpr std::int64_t kSteps = 5;
constexpr std::int64_t kSequences = 3;
constexpr std::int64_t kInputs = 2;

// The place of a gradient's mean.
inline double* place(const Bucketizer& buckets, std::size_t parameter) {
  const Bucketizer::Buffer& buffer = buckets.buffers().at(0);
  return reinterpret_cast<double*>(buffer.memory.get()) + buffer.layout.offsets.at(parameter);
}

// A model with its parameters, their gradients, and the state it carries, and its training step.
class Trained {
 public:
  Trained() = default;
  Trained(const Trained&) = delete;
  Trained& operator=(const Trained&) = delete;

  Weights<double> weights(std::int64_t numel) {
    values_.push_back(noise(numel, static_cast<std::uint32_t>(values_.size()) + 1, 0.6));
    gradients_.emplace_back(at(numel), std::numeric_limits<double>::quiet_NaN());
    parts_.push_back(part);
    return {.value = values_.back().data(), .gradient = gradients_.back().data()};
  }
  std::unique_ptr<Layer<double>> new_linear(std::int64_t inputs, std::int64_t outputs, bool bias = true) {
    const Weights<double> w = weights(outputs * inputs);
    return make_linear<double>(inputs, outputs, w, bias ? weights(outputs) : Weights<double>{});
  }
  std::unique_ptr<Layer<double>> new_recurrent(const RecurrentOptions& options) {
    std::vector<Weights<double>> all;
    const std::int64_t directions = options.bidirectional ? 2 : 1;
    for (std::int64_t row = 0; row < options.layers * directions; ++row) {
      const std::int64_t inputs = row < directions ? options.inputs : options.hidden * directions;
      const std::int64_t gates = gate_count(options.cell) * options.hidden;
      all.push_back(weights(gates * inputs));
      all.push_back(weights(gates * options.hidden));
      if (options.biases) all.push_back(weights(gates));
      if (options.biases) all.push_back(weights(gates));
    }
    return make_recurrent<double>(options, std::move(all));
  }
  void linear(std::int64_t inputs, std::int64_t outputs, bool bias = true) { add(new_linear(inputs, outputs, bias)); }
  void recurrent(const RecurrentOptions& options) {
    add(new_recurrent(options));
    add_states(options.layers * (options.bidirectional ? 2 : 1) * options.hidden, layers_.back()->state_count());
  }
  // Of so many units.
  void add_states(std::int64_t units, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      states_.push_back(noise(units * kSequences, 100 + static_cast<std::uint32_t>(states_.size()), 0.5));
    }
  }
  void add(std::unique_ptr<Layer<double>> layer) { layers_.push_back(std::move(layer)); }

  // Can be called once: the layers are moved.
  Step<double>& step(const Loss& loss, ParallelFor parallel_for = serial_for, std::int64_t chunks = 1,
                     Bucketizer* buckets = nullptr) {
    std::vector<Parameter<double>> parameters;
    std::vector<Gradient<double>> gradients;
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const auto numel = static_cast<std::int64_t>(values_[i].size());
      held_.emplace_back(values_[i].size());
      double* const own = chunks == 1 ? gradients_[i].data() : held_[i].data();
      double* const gradient = buckets == nullptr ? own : place(*buckets, i);
      parameters.push_back({.value = values_[i].data(),
                            .gradient = gradient,
                            .numel = numel,
                            .average = nullptr,
                            .square = nullptr,
                            .other = nullptr,
                            .step = nullptr,
                            .step_dtype = DType::kFloat64,
                            .group = 0,
                            .part = parts_[i]});
      gradients.push_back({.fresh = gradients_[i].data(), .held = gradient, .numel = numel});
    }
    model_.emplace(std::move(layers_), parallel_for);
    std::vector<double*> states;
    states.reserve(states_.size());
    for (Values& state : states_) states.push_back(state.data());
    model_->set_state(states);
    update_.emplace(OptimizerKind::kSgd, std::move(parameters));
    return step_.emplace(*model_, loss, *update_, chunks, std::move(gradients), buckets);
  }
  std::int64_t part = 0;  // of parameters that come
  std::vector<Values>& values() { return values_; }
  // Of the last chunk,
  std::vector<Values>& gradients() { return gradients_; }
  // and of several chunks.
  std::vector<Values>& held() { return held_; }
  std::vector<Values>& states() { return states_; }

 private:
  std::vector<std::unique_ptr<Layer<double>>> layers_;
  std::vector<Values> values_;
  std::vector<Values> gradients_;
  std::vector<std::int64_t> parts_;
  std::vector<Values> held_;
  std::vector<Values> states_;
  std::optional<Model<double>> model_;
  std::optional<Update<double>> update_;
  std::optional<Step<double>> step_;
};

struct Data {
  std::int64_t outputs;
  std::int64_t inputs = kInputs;
  std::int64_t targets = outputs;
  Values x = noise(kSteps * kSequences * inputs, 50, 1);
  Values y = noise(kSteps * kSequences * targets, 51, 1);
  std::vector<std::int64_t> labels = {};
  Values weights = {};
  Values value_weights = {};
  std::vector<std::int64_t> lengths = {};
  std::vector<std::uint64_t> seeds = {7, 8};
  std::vector<std::int64_t> sizes = {kSteps};
  bool last_only = false;

  Chunks<double> chunks() const {
    const bool classes = !labels.empty();
    const std::int64_t each = classes ? 1 : targets;
    return {.x = {.data = x.data(), .step = kSequences * inputs, .sequence = inputs},
            .targets = {.values = classes ? nullptr : y.data(),
                        .value_weights = value_weights.empty() ? nullptr : value_weights.data(),
                        .labels = classes ? labels.data() : nullptr,
                        .step = kSequences * each,
                        .sequence = each,
                        .weights = weights.empty() ? nullptr : weights.data(),
                        .weight_step = kSequences,
                        .weight_sequence = 1,
                        .last_only = last_only},
            .sizes = sizes,
            .sequences = kSequences,
            .lengths = lengths.empty() ? nullptr : lengths.data(),
            .seeds = std::span(seeds).first(sizes.size())};
  }
};

inline Outcome train(Step<double>& step, const Data& data, const Clipping& clipping, std::vector<Done>& done,
                     double lr = 0.1) {
  const Settings settings{.lr = lr};
  Held held;
  return step.train(data.chunks(), {{settings}}, clipping, false, held, done);
}

// The loss of the chunk from the same state, which is left as it was.
inline double loss_of(Step<double>& step, Trained& model, const Data& data, double lr = 0) {
  const std::vector<Values> before = model.states();
  std::vector<Done> done;
  const Outcome outcome = train(step, data, {}, done, lr);
  CHECK(outcome.end == End::kAll);
  for (std::size_t i = 0; i < before.size(); ++i) std::ranges::copy(before[i], model.states()[i].begin());
  return done.at(0).loss;
}

// `members`: each has the gradient of its own loss, which is so many times that of their mean.
inline void check_gradients(Trained& model, Step<double>& step, const Data& data, double members = 1) {
  loss_of(step, model, data);
  const std::vector<Values> gradients = model.gradients();
  for (std::size_t p = 0; p < gradients.size(); ++p) {
    for (std::size_t i = 0; i < gradients[p].size(); i += 1 + gradients[p].size() / 7) {
      constexpr double kMove = 1e-5;
      double& value = model.values()[p][i];
      const double before = value;
      value = before + kMove;
      const double above = loss_of(step, model, data);
      value = before - kMove;
      const double below = loss_of(step, model, data);
      value = before;
      CHECK(std::abs((above - below) / (2 * kMove) * members - gradients[p][i]) < 1e-8);
    }
  }
}

inline RecurrentOptions options(Cell cell, std::int64_t inputs, std::int64_t hidden) {
  return {.cell = cell,
          .inputs = inputs,
          .hidden = hidden,
          .layers = 1,
          .biases = true,
          .bidirectional = false,
          .dropout = 0,
          .takes_lengths = true,
          .carries = true,
          .number = 0};
}

}  // namespace fastseq::step
