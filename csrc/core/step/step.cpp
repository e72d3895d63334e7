#include "core/step/step.h"

#include <algorithm>
#include <cmath>

#include "core/base/isa.h"

namespace fastseq::step {

namespace {

constexpr std::int64_t kPartial = 16;

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

template <class T>
void scale(T* data, std::int64_t count, T factor) {
  for (std::int64_t i = 0; i < count; ++i) data[i] *= factor;
}

}  // namespace

template <class T>
Step<T>::Step(std::vector<std::unique_ptr<Layer<T>>> layers, LossKind loss, double loss_parameter,
              OptimizerKind optimizer, std::vector<Parameter<T>> parameters, ParallelFor parallel_for)
    : layers_(std::move(layers)),
      loss_(loss),
      loss_parameter_(loss_parameter),
      optimizer_(optimizer),
      parameters_(std::move(parameters)),
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
                       std::vector<Done>& done) {
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
    if (value.bad_label) return {.end = End::kBadLabel, .loss = 0};
    if (value.weight > 0) {
      if (!std::isfinite(value.loss)) return {.end = End::kNotFinite, .loss = value.loss};
      backward(chunk);
      clip(clipping);
      optimizer_step<T>(optimizer_, settings, parameters_);
    }
    done.push_back({.loss = value.loss, .weight = value.weight});
  }
  return {.end = End::kAll, .loss = 0};
}

template class Step<float>;
template class Step<double>;

}  // namespace fastseq::step
