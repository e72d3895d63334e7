// Training steps of any small models: the same bits however loops are divided, gradients against the loss's slope, and
// parameters that stay when a loss is not finite.
#include "core/step/step.h"

#include <memory>
#include <optional>

#include "fuzz.h"

namespace fastseq::step {

namespace {

using Values = std::vector<double>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

enum class Kind : std::uint8_t { kLinear, kActivation, kDropout, kRecurrent, kPooled };

struct LayerPlan {
  Kind kind{};
  std::int64_t inputs = 0;
  std::int64_t outputs = 0;
  bool bias = false;
  Activation activation{};
  double rate = 0;
  RecurrentOptions recurrent{};
  std::vector<Pooling> parts;
};

// All that a run depends on.
struct Plan {
  std::vector<LayerPlan> layers;
  Loss loss{};
  std::int64_t inputs = 0;
  std::int64_t outputs = 0;
  std::int64_t sequences = 0;
  std::vector<std::int64_t> sizes;
  std::int64_t steps = 0;
  std::int64_t chunks = 1;  // of an update
  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> labels;
  Values x, y, weights;
  bool last_only = false;
  bool smooth = true;
  bool finite = true;
  Clipping clipping;
};

LayerPlan draw_layer(fuzz::Draw& draw, std::int64_t inputs, std::int64_t number, bool& smooth) {
  LayerPlan layer{
      .kind = static_cast<Kind>(draw.between(0, 4)), .inputs = inputs, .outputs = inputs, .bias = draw.yes()};
  switch (layer.kind) {
    case Kind::kLinear:
      layer.outputs = draw.between(1, draw.yes() ? 4 : 18);
      break;
    case Kind::kActivation:
      layer.activation = draw.of(std::array{Activation::kRelu, Activation::kSigmoid, Activation::kTanh});
      smooth = smooth && layer.activation != Activation::kRelu;
      break;
    case Kind::kDropout:
      layer.rate = draw.of(std::array{0.0, 0.5, 0.9});
      break;
    case Kind::kRecurrent: {
      const bool both = draw.yes();
      layer.recurrent = {.cell = draw.of(std::array{Cell::kLstm, Cell::kGru, Cell::kTanhRnn, Cell::kReluRnn}),
                         .inputs = inputs,
                         .hidden = draw.between(1, 5),
                         .layers = draw.between(1, 2),
                         .biases = layer.bias,
                         .bidirectional = both,
                         .dropout = draw.yes() ? 0.0 : 0.4,
                         .takes_lengths = draw.yes(),
                         .carries = !both && draw.yes(),
                         .number = number};
      layer.outputs = layer.recurrent.hidden * (both ? 2 : 1);
      smooth = smooth && layer.recurrent.cell != Cell::kReluRnn;
      break;
    }
    case Kind::kPooled:
      for (std::int64_t left = draw.between(1, 3); left > 0; --left) {
        layer.parts.push_back(draw.of(std::array{Pooling::kLast, Pooling::kMean, Pooling::kMax}));
        smooth = smooth && layer.parts.back() != Pooling::kMax;
      }
      layer.outputs = inputs * static_cast<std::int64_t>(layer.parts.size());
      break;
  }
  return layer;
}

void draw_loss(fuzz::Draw& draw, Plan& plan) {
  plan.loss.kind = static_cast<LossKind>(draw.between(0, 6));
  plan.smooth = plan.smooth && (plan.loss.kind == LossKind::kMse || plan.loss.kind == LossKind::kBinaryWithLogits ||
                                plan.loss.kind == LossKind::kCrossEntropy);
  plan.loss.parameters = {0.5};
  plan.loss.of_known = draw.yes();
  if (plan.loss.kind == LossKind::kPinball && plan.outputs % 2 == 0) plan.loss.parameters = {0.1, 0.9};
}

Plan draw_plan(fuzz::Draw& draw) {
  Plan plan;
  plan.inputs = draw.between(1, 4);
  plan.outputs = plan.inputs;
  for (std::int64_t i = 0, count = draw.between(1, 3); i < count; ++i) {
    plan.layers.push_back(draw_layer(draw, plan.outputs, i, plan.smooth));
    plan.outputs = plan.layers.back().outputs;
  }
  draw_loss(draw, plan);
  plan.sequences = draw.between(0, 4);
  for (std::int64_t left = draw.between(1, 3); left > 0; --left) {
    plan.sizes.push_back(draw.between(0, 3));
    plan.steps += plan.sizes.back();
  }
  plan.chunks = draw.between(1, 2);
  if (draw.yes()) {
    for (std::int64_t n = 0; n < plan.sequences; ++n) plan.lengths.push_back(draw.between(0, plan.steps));
  }
  plan.last_only = draw.yes();
  if (draw.between(0, 3) == 0) plan.clipping.norm = 0.1;
  if (draw.between(0, 3) == 0) plan.clipping.value = 0.01;
  fuzz::Noise noise(draw.seed());
  const std::int64_t rows = plan.steps * plan.sequences;
  plan.x = noise.numbers(rows * plan.inputs);
  plan.y = noise.numbers(rows * plan.outputs);
  for (double& value : plan.y) value = (value + 1) / 2;
  for (std::int64_t i = 0; i < rows; ++i) plan.labels.push_back(noise.below(plan.outputs));
  if (draw.yes()) plan.weights = noise.numbers(rows);
  for (double& weight : plan.weights) weight = std::max(weight, 0.0);
  if (rows > 0 && draw.between(0, 7) == 0) {
    plan.finite = false;
    Values& poisoned = draw.yes() ? plan.x : plan.y;
    poisoned[at(noise.below(static_cast<std::int64_t>(poisoned.size())))] =
        draw.of(std::array<double, 2>{NAN, INFINITY});
    if (draw.yes()) plan.labels[at(noise.below(rows))] = draw.of(std::array<std::int64_t, 2>{-1, plan.outputs});
  }
  return plan;
}

// A model with all that belongs to it, the same for each of a plan.
template <class T>
class Trained {
 public:
  Trained(const Plan& plan, ParallelFor parallel_for) : plan_(plan) {
    for (const LayerPlan& layer : plan.layers) layers_.push_back(make(layer));
    model_.emplace(std::move(layers_), parallel_for);
    std::vector<T*> states;
    for (std::vector<T>& state : states_) states.push_back(state.data());
    model_->set_state(states);
    std::vector<Parameter<T>> parameters;
    std::vector<Gradient<T>> gradients;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto numel = static_cast<std::int64_t>(values[i].size());
      held_.emplace_back(values[i].size());
      T* const held = plan.chunks == 1 ? fresh[i].data() : held_[i].data();
      parameters.push_back({.value = values[i].data(),
                            .gradient = held,
                            .numel = numel,
                            .average = nullptr,
                            .square = nullptr,
                            .other = nullptr,
                            .step = nullptr,
                            .step_dtype = DType::kFloat64,
                            .group = 0});
      gradients.push_back({.fresh = fresh[i].data(), .held = held, .numel = numel});
    }
    update_.emplace(OptimizerKind::kSgd, std::move(parameters));
    step_.emplace(*model_, plan.loss, *update_, plan.chunks, std::move(gradients), nullptr);
  }

  Outcome train(double lr) {
    const std::vector<T> x(plan_.x.begin(), plan_.x.end());
    const std::vector<T> y(plan_.y.begin(), plan_.y.end());
    const std::vector<T> weights(plan_.weights.begin(), plan_.weights.end());
    const bool classes = plan_.loss.kind == LossKind::kCrossEntropy;
    const std::int64_t each =
        classes ? 1 : plan_.outputs / static_cast<std::int64_t>(known() ? plan_.loss.parameters.size() : 1);
    const std::vector<std::uint64_t> seeds(plan_.sizes.size(), 9);
    const Chunks<T> chunks{.x = {.data = x.data(), .step = plan_.sequences * plan_.inputs, .sequence = plan_.inputs},
                           .targets = {.values = classes ? nullptr : y.data(),
                                       .value_weights = nullptr,
                                       .labels = classes ? plan_.labels.data() : nullptr,
                                       .step = plan_.sequences * each,
                                       .sequence = each,
                                       .weights = weights.empty() ? nullptr : weights.data(),
                                       .weight_step = plan_.sequences,
                                       .weight_sequence = 1,
                                       .last_only = plan_.last_only},
                           .sizes = plan_.sizes,
                           .sequences = plan_.sequences,
                           .lengths = plan_.lengths.empty() ? nullptr : plan_.lengths.data(),
                           .seeds = seeds};
    const Settings settings{.lr = lr};
    Held held;
    return step_->train(chunks, {{settings}}, plan_.clipping, false, held, done);
  }

  std::vector<std::vector<T>> values;
  std::vector<std::vector<T>> fresh;  // gradients
  std::vector<Done> done;

 private:
  bool known() const { return plan_.loss.of_known || plan_.loss.kind == LossKind::kPinball; }

  Weights<T> weights(std::int64_t numel) {
    const Values drawn = fuzz::Noise(static_cast<std::uint32_t>(values.size()) + 3).numbers(numel, 0.6);
    values.emplace_back(drawn.begin(), drawn.end());
    fresh.emplace_back(at(numel), std::numeric_limits<T>::quiet_NaN());
    return {.value = values.back().data(), .gradient = fresh.back().data()};
  }

  std::unique_ptr<Layer<T>> make(const LayerPlan& l) {
    switch (l.kind) {
      case Kind::kLinear: {
        const Weights<T> w = weights(l.outputs * l.inputs);
        return make_linear<T>(l.inputs, l.outputs, w, l.bias ? weights(l.outputs) : Weights<T>{});
      }
      case Kind::kActivation:
        return make_activation<T>(l.activation, l.inputs);
      case Kind::kDropout:
        return make_dropout<T>(l.rate, l.inputs, 5);
      case Kind::kRecurrent:
        return make_recurrent(l.recurrent);
      case Kind::kPooled:
        return make_pooled<T>(l.parts, l.inputs, {});
    }
    std::abort();
  }

  std::unique_ptr<Layer<T>> make_recurrent(const RecurrentOptions& o) {
    std::vector<Weights<T>> all;
    const std::int64_t directions = o.bidirectional ? 2 : 1;
    const std::int64_t rows = gate_count(o.cell) * o.hidden;
    for (std::int64_t row = 0; row < o.layers * directions; ++row) {
      all.push_back(weights(rows * (row < directions ? o.inputs : o.hidden * directions)));
      all.push_back(weights(rows * o.hidden));
      for (int bias = 0; bias < 2 && o.biases; ++bias) all.push_back(weights(rows));
    }
    auto made = step::make_recurrent<T>(o, std::move(all));
    for (std::int64_t i = 0; i < made->state_count(); ++i) {
      states_.emplace_back(at(o.layers * directions * o.hidden * plan_.sequences));
    }
    return made;
  }

  const Plan& plan_;
  std::vector<std::unique_ptr<Layer<T>>> layers_;
  std::vector<std::vector<T>> held_;
  std::vector<std::vector<T>> states_;
  std::optional<Model<T>> model_;
  std::optional<Update<T>> update_;
  std::optional<Step<T>> step_;
};

template <class T>
bool equal(const std::vector<std::vector<T>>& a, const std::vector<std::vector<T>>& b) {
  return std::ranges::equal(a, b, [](const auto& one, const auto& other) {
    return std::ranges::equal(one, other, [](T x, T y) { return fuzz::same(x, y); });
  });
}

template <class T>
void check_bits(const Plan& plan) {
  Trained<T> whole(plan, serial_for);
  Trained<T> parts(plan, fuzz::backwards_for);
  const auto before = whole.values;
  const Outcome a = whole.train(0.1);
  const Outcome b = parts.train(0.1);
  // A busy machine may end a call early.
  if (a.end == End::kPaused || b.end == End::kPaused) return;
  fuzz::demand(a.end == b.end && a.chunks == b.chunks, "the same end");
  fuzz::demand(equal(whole.values, parts.values), "the same in parts");
  fuzz::demand(!plan.finite || a.end == End::kAll, "finite numbers can be trained on");
  const bool none = a.end != End::kAll && a.chunks == 0;
  fuzz::demand(!none || equal(whole.values, before), "parameters stay");
}

// Of the first chunk.
void check_slope(const Plan& all) {
  constexpr double kStep = 1e-5;
  Plan plan = all;
  plan.sizes.resize(1);
  plan.chunks = 1;
  plan.clipping = {};
  Trained<double> middle(plan, serial_for);
  if (middle.train(0).end != End::kAll || middle.done.at(0).weight == 0) return;
  double product = 0;
  double size = 1;
  std::array<double, 2> losses{};
  for (int side = 0; side < 2; ++side) {
    Trained<double> moved(plan, serial_for);
    for (std::size_t i = 0; i < moved.values.size(); ++i) {
      const auto numel = static_cast<std::int64_t>(moved.values[i].size());
      const Values direction = fuzz::Noise(static_cast<std::uint32_t>(i) + 90).numbers(numel);
      for (std::size_t j = 0; j < direction.size(); ++j) {
        moved.values[i][j] += (side == 0 ? -kStep : kStep) * direction[j];
        if (side == 0) continue;
        product += middle.fresh[i][j] * direction[j];
        size += std::abs(middle.fresh[i][j]);
      }
    }
    moved.train(0);
    losses[at(side)] = moved.done.at(0).loss;
  }
  fuzz::demand(std::abs((losses[1] - losses[0]) / (2 * kStep) - product) <= 1e-6 * size, "gradients");
}

}  // namespace

}  // namespace fastseq::step

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  draw.width();
  const bool wide = draw.yes();
  const step::Plan plan = step::draw_plan(draw);
  if (!wide) {
    step::check_bits<float>(plan);
  } else if (plan.smooth && plan.finite && draw.yes()) {
    step::check_slope(plan);
  } else {
    step::check_bits<double>(plan);
  }
  return 0;
}
