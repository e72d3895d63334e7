#include "core/step/step.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/isa.h"

namespace fastseq::step {

namespace {

constexpr std::int64_t kPartial = 16;
constexpr double kTiny = std::numeric_limits<double>::min();

template <class T>
double sum_of_squares(const T* data, std::int64_t count) {
  double sums[kPartial] = {};
  std::int64_t i = 0;
  for (; i + kPartial <= count; i += kPartial) {
    for (std::int64_t j = 0; j < kPartial; ++j) {
      const auto v = static_cast<double>(data[i + j]);
      sums[j] += v * v;
    }
  }
  double total = 0;
  for (; i < count; ++i) total += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  for (const double sum : sums) total += sum;
  return total;
}

// to = weight * from, plus what is there if it `adds`.
template <class T>
void weigh(const T* from, T* to, std::int64_t count, T weight, bool adds) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) to[i] = (adds ? to[i] : T{}) + weight * from[i];
}

template <class T>
void scale(T* data, std::int64_t count, T factor) {
  for (std::int64_t i = 0; i < count; ++i) data[i] *= factor;
}

}  // namespace

template <class T>
Step<T>::Step(std::vector<std::unique_ptr<Layer<T>>> layers, LossKind loss, double loss_parameter,
              OptimizerKind optimizer, std::vector<Parameter<T>> parameters, Accumulation<T> accumulation,
              ParallelFor parallel_for)
    : layers_(std::move(layers)),
      loss_(loss),
      loss_parameter_(loss_parameter),
      optimizer_(optimizer),
      parameters_(std::move(parameters)),
      accumulation_(std::move(accumulation)),
      parallel_for_(parallel_for),
      given_(layers_.size()) {}

template <class T>
void Step<T>::set_state(std::span<T* const> state) {
  auto next = state.begin();
  for (const auto& layer : layers_) {
    const std::int64_t count = layer->state_count();
    layer->set_state({next, next + count});
    next += count;
  }
}

template <class T>
const T* Step<T>::forward(const Chunk& chunk, const Rows<T>& x) {
  Rows<T> rows = x;
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    given_[l] = rows;
    const std::int64_t outputs = layers_[l]->outputs();
    rows = {layers_[l]->forward(chunk, rows), chunk.sequences * outputs, outputs};
  }
  return rows.data;
}

template <class T>
void Step<T>::backward(const Chunk& chunk) {
  T* dy = dy_.data();
  for (std::size_t l = layers_.size(); l-- > 0;) dy = layers_[l]->backward(chunk, given_[l], dy, l > 0);
}

// Adds the gradients of a chunk, times its weight, to those that are held.
template <class T>
void Step<T>::hold(double weight, const Held& held) {
  for (const auto& g : accumulation_.gradients) {
    best<weigh<T>>(g.fresh, g.held, g.numel, static_cast<T>(weight), held.weight > 0);
  }
}

// The means over samples of what is held.
template <class T>
void Step<T>::release(double weight) {
  for (const auto& g : accumulation_.gradients) best<scale<T>>(g.held, g.numel, static_cast<T>(1 / weight));
}

template <class T>
void Step<T>::clip(const Clipping& clipping) {
  if (clipping.value) {
    const T most = static_cast<T>(*clipping.value);
    for (const Parameter<T>& p : parameters_) {
      for (std::int64_t i = 0; i < p.numel; ++i) p.gradient[i] = std::clamp(p.gradient[i], -most, most);
    }
  }
  if (clipping.norm) {
    double squares = 0;
    for (const Parameter<T>& p : parameters_) squares += best<sum_of_squares<T>>(p.gradient, p.numel);
    const double factor = *clipping.norm / (std::sqrt(squares) + 1e-6);
    if (factor >= 1) return;
    for (const Parameter<T>& p : parameters_) best<scale<T>>(p.gradient, p.numel, static_cast<T>(factor));
  }
}

template <class T>
Outcome Step<T>::train(const Chunks<T>& chunks, std::span<const Settings> settings, const Clipping& clipping,
                       Held& held, std::vector<Done>& done) {
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < chunks.sizes.size(); ++i) {
    const std::int64_t steps = chunks.sizes[i];
    const Rows<T> x{chunks.x.data + begin * chunks.x.step, chunks.x.step, chunks.x.sequence};
    Targets<T> targets = chunks.targets;
    if (targets.values != nullptr) targets.values += begin * targets.step;
    if (targets.labels != nullptr) targets.labels += begin * targets.step;
    if (targets.weights != nullptr) targets.weights += begin * targets.weight_step;
    Chunk chunk{.steps = steps,
                .sequences = chunks.sequences,
                .lengths = nullptr,
                .training = true,
                .seed = chunks.seeds.empty() ? 0 : chunks.seeds[i],
                .parallel_for = parallel_for_};
    if (chunks.lengths != nullptr) {
      lengths_.resize(static_cast<std::size_t>(chunks.sequences));
      std::transform(chunks.lengths, chunks.lengths + chunks.sequences, lengths_.begin(),
                     [&](std::int64_t length) { return std::clamp<std::int64_t>(length - begin, 0, steps); });
      chunk.lengths = lengths_.data();
    }
    begin += steps;
    const T* const out = forward(chunk, x);
    T* const dy = dy_.reserve(chunk.rows() * outputs());
    const LossValue value =
        loss_and_gradient(loss_, loss_parameter_, out, targets, steps, chunks.sequences, outputs(), dy);
    const auto index = static_cast<std::int64_t>(i);
    if (value.bad_label) return {.end = End::kBadLabel, .loss = 0, .chunks = index};
    if (value.weight > 0) {
      if (!std::isfinite(value.loss)) return {.end = End::kNotFinite, .loss = value.loss, .chunks = index};
      backward(chunk);
      if (accumulation_.chunks > 1) hold(value.weight, held);
      held.weight += value.weight;
      held.loss += value.weight * value.loss;
    }
    if (++held.chunks < accumulation_.chunks) continue;
    if (held.weight > 0) {
      if (accumulation_.chunks > 1) release(held.weight);
      clip(clipping);
      optimizer_step<T>(optimizer_, settings, parameters_);
    }
    const double loss = accumulation_.chunks > 1 ? held.loss / std::max(held.weight, kTiny) : value.loss;
    done.push_back({.loss = loss, .weight = held.weight});
    held = {};
  }
  return {.end = End::kAll, .loss = 0, .chunks = static_cast<std::int64_t>(chunks.sizes.size())};
}

template class Step<float>;
template class Step<double>;

}  // namespace fastseq::step
