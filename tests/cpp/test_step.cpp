// Training steps: gradients against difference quotients of the loss, updates against formulas written out.
#include "core/step/step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "check.h"
#include "ranges.h"
#include "team.h"

namespace fastseq::step {

namespace {

using Values = std::vector<double>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

Values noise(std::int64_t numel, std::uint32_t seed, double size) {
  Values values(at(numel));
  std::uint32_t state = seed * 2654435761U + 1;
  for (double& value : values) {
    state = state * 1664525U + 1013904223U;
    value = size * (static_cast<double>(state >> 8) / (1 << 23) - 1);
  }
  return values;
}

constexpr std::int64_t kSteps = 5;
constexpr std::int64_t kSequences = 3;
constexpr std::int64_t kInputs = 2;

// The place of a gradient's mean.
double* place(const Bucketizer& buckets, std::size_t parameter) {
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
    return {.value = values_.back().data(), .gradient = gradients_.back().data()};
  }
  void linear(std::int64_t inputs, std::int64_t outputs, bool bias = true) {
    const Weights<double> w = weights(outputs * inputs);
    layers_.push_back(make_linear<double>(inputs, outputs, w, bias ? weights(outputs) : Weights<double>{}));
  }
  void recurrent(const RecurrentOptions& options) {
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
    layers_.push_back(make_recurrent<double>(options, std::move(all)));
    for (std::int64_t i = 0; i < layers_.back()->state_count(); ++i) {
      states_.push_back(noise(options.layers * directions * kSequences * options.hidden,
                              100 + static_cast<std::uint32_t>(states_.size()), 0.5));
    }
  }
  void add(std::unique_ptr<Layer<double>> layer) { layers_.push_back(std::move(layer)); }

  // Can be called once: the layers are moved.
  Step<double>& step(LossKind loss, double parameter, ParallelFor parallel_for = serial_for, std::int64_t chunks = 1,
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
                            .group = 0});
      gradients.push_back({.fresh = gradients_[i].data(), .held = gradient, .numel = numel});
    }
    model_.emplace(std::move(layers_), parallel_for);
    std::vector<double*> states;
    states.reserve(states_.size());
    for (Values& state : states_) states.push_back(state.data());
    model_->set_state(states);
    update_.emplace(OptimizerKind::kSgd, std::move(parameters));
    return step_.emplace(*model_, loss, parameter, *update_, chunks, std::move(gradients), buckets);
  }
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
  std::vector<Values> held_;
  std::vector<Values> states_;
  std::optional<Model<double>> model_;
  std::optional<Update<double>> update_;
  std::optional<Step<double>> step_;
};

struct Data {
  std::int64_t outputs;
  Values x = noise(kSteps * kSequences * kInputs, 50, 1);
  Values y = noise(kSteps * kSequences * outputs, 51, 1);
  std::vector<std::int64_t> labels = {};
  Values weights = {};
  std::vector<std::int64_t> lengths = {};
  std::vector<std::uint64_t> seeds = {7, 8};
  std::vector<std::int64_t> sizes = {kSteps};
  bool last_only = false;

  Chunks<double> chunks() const {
    const bool classes = !labels.empty();
    const std::int64_t each = classes ? 1 : outputs;
    return {.x = {.data = x.data(), .step = kSequences * kInputs, .sequence = kInputs},
            .targets = {.values = classes ? nullptr : y.data(),
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

Outcome train(Step<double>& step, const Data& data, const Clipping& clipping, std::vector<Done>& done,
              double lr = 0.1) {
  const Settings settings{.lr = lr};
  Held held;
  return step.train(data.chunks(), {{settings}}, clipping, false, held, done);
}

// The loss of the chunk from the same state, which is left as it was.
double loss_of(Step<double>& step, Trained& model, const Data& data, double lr = 0) {
  const std::vector<Values> before = model.states();
  std::vector<Done> done;
  const Outcome outcome = train(step, data, {}, done, lr);
  CHECK(outcome.end == End::kAll);
  for (std::size_t i = 0; i < before.size(); ++i) std::ranges::copy(before[i], model.states()[i].begin());
  return done.at(0).loss;
}

void check_gradients(Trained& model, Step<double>& step, const Data& data) {
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
      CHECK(std::abs((above - below) / (2 * kMove) - gradients[p][i]) < 1e-8);
    }
  }
}

RecurrentOptions options(Cell cell, std::int64_t inputs, std::int64_t hidden) {
  return {.cell = cell,
          .inputs = inputs,
          .hidden = hidden,
          .layers = 1,
          .biases = true,
          .bidirectional = false,
          .dropout = 0,
          .takes_lengths = true,
          .number = 0};
}

}  // namespace

TEST(gradients_of_layers_are_difference_quotients) {
  for (const Cell cell : {Cell::kLstm, Cell::kGru, Cell::kTanhRnn}) {
    for (const bool both : {false, true}) {
      for (const bool lengths : {false, true}) {
        Trained model;
        model.linear(kInputs, 17, both);
        model.add(make_activation<double>(Activation::kTanh, 17));
        RecurrentOptions more = options(cell, 17, 9);
        more.layers = 2;
        more.bidirectional = both;
        more.dropout = 0.4;
        more.biases = !lengths;
        model.recurrent(more);
        model.add(make_dropout<double>(0.3, both ? 18 : 9, 1));
        model.linear(both ? 18 : 9, 2);
        model.add(make_activation<double>(Activation::kSigmoid, 2));
        Data data{.outputs = 2};
        if (lengths) data.lengths = {5, 2, 3};
        Step<double>& step = model.step(LossKind::kMse, 0);
        testing::for_every_width([&] { check_gradients(model, step, data); });
      }
    }
  }
}

TEST(gradients_of_losses_are_difference_quotients) {
  for (const LossKind kind : {LossKind::kMse, LossKind::kMae, LossKind::kHuber, LossKind::kSmoothL1,
                              LossKind::kBinaryWithLogits, LossKind::kCrossEntropy}) {
    for (const int form : {0, 1, 2, 3}) {
      const bool weighted = form % 2 == 1;
      Trained model;
      model.linear(kInputs, 3);
      Data data{.outputs = 3};
      data.last_only = form >= 2;
      if (kind == LossKind::kCrossEntropy) {
        for (std::int64_t i = 0; i < kSteps * kSequences; ++i) data.labels.push_back(i % 3);
      }
      if (weighted) {
        data.weights = noise(kSteps * kSequences, 60, 1);
        for (double& w : data.weights) w = std::max(w, 0.0);
      }
      Step<double>& step = model.step(kind, 0.4);
      check_gradients(model, step, data);
    }
  }
}

TEST(samples_of_weight_zero_do_not_count_even_if_nan) {
  Trained model;
  model.linear(kInputs, 1);
  Data data{.outputs = 1};
  data.weights.assign(at(kSteps * kSequences), 1);
  data.weights[4] = 0;
  Step<double>& step = model.step(LossKind::kMse, 0);
  const double loss = loss_of(step, model, data);
  data.y[4] = std::numeric_limits<double>::quiet_NaN();
  CHECK_EQ(loss_of(step, model, data), loss);
  double sum = 0;
  for (std::size_t i = 0; i < data.y.size(); ++i) {
    const double out =
        model.values()[1][0] + model.values()[0][0] * data.x[2 * i] + model.values()[0][1] * data.x[2 * i + 1];
    if (i != 4) sum += (out - data.y[i]) * (out - data.y[i]);
  }
  CHECK(std::abs(loss - sum / (kSteps * kSequences - 1)) < 1e-14);
}

// Chunks in one call are those of one call after another; the state goes on.
TEST(chunks_follow_each_other) {
  std::vector<std::vector<Values>> found;
  for (const bool together : {true, false}) {
    Trained model;
    model.recurrent(options(Cell::kLstm, kInputs, 4));
    model.linear(4, 1);
    Step<double>& step = model.step(LossKind::kMse, 0);
    Data data{.outputs = 1};
    std::vector<Done> done;
    if (together) {
      data.sizes = {3, 2};
      train(step, data, {.value = {}, .norm = 0.05}, done);
    } else {
      data.sizes = {3};
      train(step, data, {.value = {}, .norm = 0.05}, done);
      data.sizes = {2};
      data.x.erase(data.x.begin(), data.x.begin() + 3 * kSequences * kInputs);
      data.y.erase(data.y.begin(), data.y.begin() + 3 * kSequences);
      train(step, data, {.value = {}, .norm = 0.05}, done);
    }
    CHECK_EQ(done.size(), 2U);
    found.push_back(model.values());
    found.push_back(model.states());
  }
  CHECK(found[0] == found[2]);
  CHECK(found[1] == found[3]);
}

TEST(results_do_not_depend_on_threads) {
  std::vector<std::vector<Values>> found;
  for (const ParallelFor parallel_for : testing::parallel_fors()) {
    Trained model;
    model.linear(kInputs, 40);
    model.recurrent(options(Cell::kGru, 40, 20));
    model.linear(20, 2);
    Step<double>& step = model.step(LossKind::kMse, 0, parallel_for);
    loss_of(step, model, Data{.outputs = 2}, 0.1);
    found.push_back(model.values());
    CHECK(found.back() == found.front());
  }
}

TEST(nothing_is_updated_by_what_cannot_be_trained_on) {
  Trained model;
  model.linear(kInputs, 2);
  const std::vector<Values> before = model.values();
  Step<double>& step = model.step(LossKind::kCrossEntropy, 0);
  Data data{.outputs = 2};
  data.labels.assign(at(kSteps * kSequences), 1);
  data.labels[7] = 2;
  std::vector<Done> done;
  CHECK(train(step, data, {}, done).end == End::kBadLabel);
  data.labels[7] = 1;
  data.x[3] = std::numeric_limits<double>::infinity();
  CHECK(train(step, data, {}, done).end == End::kNotFinite);
  data.x[3] = 0;
  data.weights.assign(at(kSteps * kSequences), 0);
  CHECK(train(step, data, {}, done).end == End::kAll);
  CHECK_EQ(done.size(), 1U);
  CHECK_EQ(done[0].weight, 0.0);
  CHECK(model.values() == before);
}

// An LSTM and a linear layer, and each rank's data; `weighs`: whether the rank has samples.
constexpr std::int64_t kHidden = 4;
void fill(Trained& model) {
  model.recurrent(options(Cell::kLstm, kInputs, kHidden));
  model.linear(kHidden, 1);
}
Data data_of(int rank, bool weighs, std::int64_t chunks) {
  Data data{.outputs = 1};
  data.x = noise(kSteps * kSequences * kInputs, 70 + static_cast<std::uint32_t>(rank), 1);
  data.weights.assign(at(kSteps * kSequences), weighs ? 1 + rank : 0);
  if (chunks == 2) data.sizes = {3, 2};
  return data;
}

TEST(ranks_update_by_the_mean_over_all_their_samples) {
  constexpr int kRanks = 3;
  constexpr double kRate = 0.1;
  for (const std::int64_t chunks : {1, 2}) {
    for (const bool threaded : {false, true}) {
      for (const bool all_weigh : {true, false}) {
        std::vector<Values> sums;
        double weight = 0;
        for (int r = 0; r < kRanks; ++r) {
          Trained model;
          fill(model);
          const Data data = data_of(r, all_weigh || r != 1, chunks);
          std::vector<Done> done;
          train(model.step(LossKind::kMse, 0, serial_for, chunks), data, {}, done, 0);
          CHECK_EQ(done.size(), 1U);
          weight += done.at(0).weight;
          sums.resize(model.gradients().size());
          for (std::size_t p = 0; p < sums.size(); ++p) {
            sums[p].resize(model.gradients()[p].size());
            for (std::size_t i = 0; done[0].weight > 0 && i < sums[p].size(); ++i) {
              sums[p][i] += done[0].weight * (chunks == 1 ? model.gradients() : model.held())[p][i];
            }
          }
        }
        std::vector<std::vector<Values>> found(kRanks);
        testing::run_team(kRanks, [&](NodeCommunicator& comm) {
          Trained model;
          fill(model);
          std::vector<std::int64_t> numels;
          for (const Values& values : model.values()) numels.push_back(static_cast<std::int64_t>(values.size()));
          const std::vector<DType> dtypes(numels.size(), DType::kFloat64);
          Bucketizer buckets({&comm, [](Communicator*) {}}, numels, dtypes, 64, threaded);
          Step<double>& step = model.step(LossKind::kMse, 0, serial_for, chunks, &buckets);
          std::vector<Done> done;
          train(step, data_of(comm.rank(), all_weigh || comm.rank() != 1, chunks), {}, done, kRate);
          CHECK_EQ(done.size(), 1U);
          CHECK_EQ(done.at(0).weight, weight);
          found[at(comm.rank())] = model.values();
        });
        Trained before;
        fill(before);
        for (std::size_t p = 0; p < sums.size(); ++p) {
          for (std::size_t i = 0; i < sums[p].size(); ++i) {
            CHECK(std::abs(found[0][p][i] - (before.values()[p][i] - kRate * sums[p][i] / weight)) < 1e-14);
          }
        }
        CHECK(found[1] == found[0]);
        CHECK(found[2] == found[0]);
      }
    }
  }
}

TEST(ranks_pause_at_the_same_update_if_one_asks_for_attention) {
  testing::run_team(2, [](NodeCommunicator& comm) {
    Trained model;
    fill(model);
    std::vector<std::int64_t> numels;
    for (const Values& values : model.values()) numels.push_back(static_cast<std::int64_t>(values.size()));
    const std::vector<DType> dtypes(numels.size(), DType::kFloat64);
    Bucketizer buckets({&comm, [](Communicator*) {}}, numels, dtypes, 1 << 20, false);
    Step<double>& step = model.step(LossKind::kMse, 0, serial_for, 1, &buckets);
    Data data = data_of(comm.rank(), true, 2);
    Held held;
    std::vector<Done> done;
    const Settings settings{.lr = 0.1};
    const Outcome outcome = step.train(data.chunks(), {{settings}}, {}, comm.rank() == 1, held, done);
    CHECK(outcome.end == End::kPaused);
    CHECK(outcome.attention);
    CHECK_EQ(outcome.chunks, 1);
    // The loss is finite, but gradients are not.
    for (Values& values : model.values()) std::ranges::fill(values, 0.0);
    for (Values& state : model.states()) std::ranges::fill(state, 0.0);
    if (comm.rank() == 1) {
      std::ranges::fill(model.values()[4], 1e200);
      std::ranges::fill(data.y, 1e150);
    }
    const Outcome failed = step.train(data.chunks(), {{settings}}, {}, false, held, done);
    CHECK(failed.end == End::kNonfiniteGradient);
    CHECK_EQ(failed.rank, 1);
    CHECK_EQ(done.size(), 1U);
  });
}

TEST(dropout_keeps_what_it_should) {
  Values kept(100000, 1.0);
  drop(kept.data(), static_cast<std::int64_t>(kept.size()), 0.3, dropout_key(5, 0));
  const auto zeros = static_cast<double>(std::ranges::count(kept, 0.0));
  CHECK(std::abs(zeros / 1e5 - 0.3) < 0.01);
  CHECK_EQ(*std::ranges::max_element(kept), 1 / 0.7);
  Values again(kept.size(), 1.0);
  drop(again.data(), static_cast<std::int64_t>(again.size()), 0.3, dropout_key(5, 0));
  CHECK(again == kept);
  drop(again.data(), static_cast<std::int64_t>(again.size()), 0.3, dropout_key(5, 1));
  CHECK(again != kept);
  Values all(10, 1.0);
  drop(all.data(), 10, 1.0, 3);
  CHECK(all == Values(10, 0.0));
}

}  // namespace fastseq::step
