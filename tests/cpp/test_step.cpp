// Training steps: gradients against difference quotients of the loss, updates against formulas written out.
#include "core/step/step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"
#include "ranges.h"
#include "team.h"
#include "trained.h"

namespace fastseq::step {

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
        Step<double>& step = model.step({.kind = LossKind::kMse});
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
      Step<double>& step = model.step({.kind = kind, .parameters = {0.4}});
      check_gradients(model, step, data);
    }
  }
}

TEST(gradients_of_pooled_outputs_are_difference_quotients) {
  const std::vector<Pooling> all{Pooling::kLast, Pooling::kMean, Pooling::kMax};
  for (const std::vector<std::int64_t>& lengths : {std::vector<std::int64_t>{}, {5, 0, 3}}) {
    Trained model;
    RecurrentOptions lstm = options(Cell::kLstm, kInputs, 4);
    lstm.bidirectional = true;
    lstm.carries = false;
    model.recurrent(lstm);
    CHECK(model.states().empty());
    std::vector<std::unique_ptr<Layer<double>>> head;
    head.push_back(make_dropout<double>(0.3, 24, 1));
    head.push_back(model.new_linear(24, 3));
    model.add(make_pooled<double>(all, 8, std::move(head)));
    Data data{.outputs = 3};
    data.lengths = lengths;
    Step<double>& step = model.step({.kind = LossKind::kMse});
    testing::for_every_width([&] { check_gradients(model, step, data); });
  }
}

// Equal largest values share the gradient; sequences without any step have zeros.
TEST(pooled_outputs_are_those_written_out) {
  const std::vector<Pooling> all{Pooling::kMax, Pooling::kLast, Pooling::kMean};
  const std::unique_ptr<Layer<float>> pooled = make_pooled<float>(all, 1, {});
  const std::vector<float> x{1, 7, 9, 5, 7, 9, 5, 2, 9, 4, 9, 9};  // (4 steps, 3 sequences)
  const std::vector<std::int64_t> lengths{4, 2, 0};
  const Chunk chunk{
      .steps = 4, .sequences = 3, .lengths = lengths.data(), .training = true, .seed = 0, .parallel_for = serial_for};
  const Rows<float> rows{.data = x.data(), .step = 3, .sequence = 1};
  const float* const y = pooled->forward(chunk, rows);
  const std::vector<float> each{5, 4, 3.75, 7, 7, 7, 0, 0, 0};
  for (std::size_t i = 0; i < 4 * each.size(); ++i) CHECK(y[i] == each[i % each.size()]);
  std::vector<float> dy(4 * each.size(), 0.25F);
  const float* const dx = pooled->backward(chunk, rows, dy.data(), true);
  const std::vector<float> expected{0.25, 1, 0, 0.75, 2, 0, 0.75, 0, 0, 1.25, 0, 0};
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(dx[i] == expected[i]);
}

// The sum of the losses over quantiles of a known target, written out.
static double pinball(const Values& levels, const double* out, double target) {
  double sum = 0;
  for (std::size_t q = 0; q < levels.size(); ++q) {
    const double error = target - out[q];
    sum += error > 0 ? levels[q] * error : (levels[q] - 1) * error;
  }
  return sum;
}

// Written out for a linear layer, whose outputs are its biases.
TEST(targets_have_weights) {
  Data data{.outputs = 4};
  std::ranges::fill(data.x, 0.0);
  data.y[5] = std::numeric_limits<double>::quiet_NaN();
  data.value_weights = noise(static_cast<std::int64_t>(data.y.size()), 61, 1);
  for (double& w : data.value_weights) w = std::abs(w);
  data.value_weights[7] = 0;
  for (const Values& factors : {Values{}, Values{0.5, 2}, Values{1, 0}}) {
    Trained own;
    own.linear(kInputs, 4);
    Step<double>& step = own.step({.kind = LossKind::kMse, .of_known = true, .part_weights = factors});
    check_gradients(own, step, data);
    double sum = 0;
    double count = 0;
    for (std::size_t i = 0; i < data.y.size(); ++i) {
      const double weight = data.value_weights[i] * (factors.empty() ? 1 : factors[i % 4 / 2]);
      if (!std::isfinite(data.y[i]) || (!factors.empty() && weight == 0)) continue;
      const double error = own.values()[1][i % 4] - data.y[i];
      sum += weight * error * error;
      ++count;
    }
    CHECK(std::abs(loss_of(step, own, data) - sum / count) < 1e-14);
  }
}

TEST(unknown_targets_do_not_count) {
  const Values levels{0.1, 0.5, 0.8};
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const LossKind kind : {LossKind::kMse, LossKind::kMae, LossKind::kHuber, LossKind::kPinball}) {
    for (const bool weighted : {false, true}) {
      const bool quantiles = kind == LossKind::kPinball;
      Trained model;
      model.linear(kInputs, 6);
      Data data{.outputs = 6, .targets = quantiles ? 2 : 6};
      for (std::size_t i = 0; i < data.y.size(); i += 4) data.y[i] = kNan;
      data.y[1] = std::numeric_limits<double>::infinity();
      if (weighted) {
        data.weights.assign(at(kSteps * kSequences), 0.3);
        data.weights[2] = 0;
      }
      Step<double>& step = model.step({.kind = kind, .parameters = quantiles ? levels : Values{0.4}, .of_known = true});
      check_gradients(model, step, data);
      if (!quantiles) continue;
      double sum = 0;
      double count = 0;
      for (std::size_t i = 0; i < data.y.size(); ++i) {
        const std::size_t row = i / 2;
        if (!std::isfinite(data.y[i]) || (weighted && row == 2)) continue;
        double out[3];
        for (std::size_t q = 0; q < 3; ++q) {
          const std::size_t o = i % 2 * 3 + q;
          out[q] = model.values()[1][o] + model.values()[0][2 * o] * data.x[2 * row] +
                   model.values()[0][2 * o + 1] * data.x[2 * row + 1];
        }
        sum += pinball(levels, out, data.y[i]) / 3;
        ++count;
      }
      CHECK(std::abs(loss_of(step, model, data) - sum / count) < 1e-14);
    }
  }
}

TEST(pinball_loss_of_what_is_met_has_the_mean_slope) {
  const double out[] = {2, 2};
  const double target = 2;
  double slopes[2];
  Targets<double> targets{};
  targets.values = &target;
  const LossValue found = loss_and_gradient({.kind = LossKind::kPinball, .parameters = {0.1, 0.5}}, out, targets, 1, 1,
                                            2, static_cast<double*>(slopes));
  CHECK_EQ(found.loss, 0.0);
  CHECK(std::abs(slopes[0] - 0.2) < 1e-15);  // half of (0.9 - 0.1) / 2: torch's gradient of a maximum of equals
  CHECK_EQ(slopes[1], 0.0);
}

// Two members of different layers.
static void fill_with_members(Trained& model) {
  std::vector<std::vector<std::unique_ptr<Layer<double>>>> members(2);
  members[0].push_back(model.new_recurrent(options(Cell::kGru, kInputs, 5)));
  members[0].push_back(model.new_linear(5, 4));
  model.part = 1;
  members[1].push_back(model.new_recurrent(options(Cell::kLstm, kInputs, 3)));
  members[1].push_back(make_dropout<double>(0.3, 3, 1));
  members[1].push_back(model.new_linear(3, 4));
  model.add(make_members<double>(std::move(members)));
  model.add_states(5, 1);
  model.add_states(3, 2);
}

TEST(gradients_of_members_are_those_of_their_own_losses) {
  Trained model;
  fill_with_members(model);
  Data data{.outputs = 8, .targets = 2};
  data.y[3] = std::numeric_limits<double>::quiet_NaN();
  Step<double>& step =
      model.step({.kind = LossKind::kPinball, .parameters = {0.2, 0.7}, .of_known = true, .members = 2});
  check_gradients(model, step, data, 2);
}

TEST(parts_are_clipped_by_their_own_norms) {
  constexpr double kRate = 0.1;
  constexpr double kNorm = 0.3;
  Trained model;
  fill_with_members(model);
  const std::vector<Values> before = model.values();
  const Data data{.outputs = 8, .targets = 4};
  Step<double>& step = model.step({.kind = LossKind::kMse, .of_known = true, .members = 2});
  loss_of(step, model, data);
  const std::vector<Values> gradients = model.gradients();
  std::vector<Done> done;
  train(step, data, {.value = {}, .norm = kNorm}, done, kRate);
  double squares[2] = {};
  const auto part = [](std::size_t parameter) { return parameter < 6 ? 0 : 1; };
  for (std::size_t p = 0; p < gradients.size(); ++p) {
    for (const double g : gradients[p]) squares[part(p)] += g * g;
  }
  CHECK(squares[0] > kNorm * kNorm);
  for (std::size_t p = 0; p < gradients.size(); ++p) {
    const double factor = std::min(kNorm / (std::sqrt(squares[part(p)]) + 1e-6), 1.0);
    for (std::size_t i = 0; i < gradients[p].size(); ++i) {
      CHECK(std::abs(model.values()[p][i] - (before[p][i] - kRate * factor * gradients[p][i])) < 1e-14);
    }
  }
}

// More than stays in a cache.
TEST(gradients_of_a_linear_layer_of_many_rows) {
  constexpr std::int64_t kMany = 50;
  constexpr std::int64_t kRows = 30;  // of a step
  constexpr std::int64_t kIn = 41;
  constexpr std::int64_t kOut = 3;
  const Values x = noise(kMany * kRows * kIn, 80, 1);
  const Values dy = noise(kMany * kRows * kOut, 81, 1);
  const Values w = noise(kOut * kIn, 82, 1);
  Values dw(w.size(), std::numeric_limits<double>::quiet_NaN());
  Values db(kOut, std::numeric_limits<double>::quiet_NaN());
  const auto layer = make_linear<double>(kIn, kOut, {.value = w.data(), .gradient = dw.data()},
                                         {.value = dy.data(), .gradient = db.data()});
  const Chunk chunk{
      .steps = kMany, .sequences = kRows, .lengths = nullptr, .training = true, .seed = 0, .parallel_for = serial_for};
  const Rows<double> rows{.data = x.data(), .step = kRows * kIn, .sequence = kIn};
  testing::for_every_width([&] {
    Values given = dy;
    given.resize(given.size() + 8);  // vectors may be read beyond the end
    layer->forward(chunk, rows);
    layer->backward(chunk, rows, given.data(), true);
    for (std::int64_t o = 0; o < kOut; ++o) {
      double sum = 0;
      for (std::int64_t r = 0; r < kMany * kRows; ++r) sum += dy[at(r * kOut + o)];
      CHECK(std::abs(sum - db[at(o)]) < 1e-11);
      for (std::int64_t i = 0; i < kIn; ++i) {
        double product = 0;
        for (std::int64_t r = 0; r < kMany * kRows; ++r) product += dy[at(r * kOut + o)] * x[at(r * kIn + i)];
        CHECK(std::abs(product - dw[at(o * kIn + i)]) < 1e-11);
      }
    }
  });
}

TEST(samples_of_weight_zero_do_not_count_even_if_nan) {
  Trained model;
  model.linear(kInputs, 1);
  Data data{.outputs = 1};
  data.weights.assign(at(kSteps * kSequences), 1);
  data.weights[4] = 0;
  Step<double>& step = model.step({.kind = LossKind::kMse});
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
    Step<double>& step = model.step({.kind = LossKind::kMse});
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
    Step<double>& step = model.step({.kind = LossKind::kMse}, parallel_for);
    loss_of(step, model, Data{.outputs = 2}, 0.1);
    found.push_back(model.values());
    CHECK(found.back() == found.front());
  }
}

TEST(nothing_is_updated_by_what_cannot_be_trained_on) {
  Trained model;
  model.linear(kInputs, 2);
  const std::vector<Values> before = model.values();
  Step<double>& step = model.step({.kind = LossKind::kCrossEntropy});
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
static void fill(Trained& model) {
  model.recurrent(options(Cell::kLstm, kInputs, kHidden));
  model.linear(kHidden, 1);
}
static Data data_of(int rank, bool weighs, std::int64_t chunks) {
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
          train(model.step({.kind = LossKind::kMse}, serial_for, chunks), data, {}, done, 0);
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
          Step<double>& step = model.step({.kind = LossKind::kMse}, serial_for, chunks, &buckets);
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
    Step<double>& step = model.step({.kind = LossKind::kMse}, serial_for, 1, &buckets);
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
