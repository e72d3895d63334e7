#include "core/step/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/base/isa.h"
#include "core/base/pack.h"

namespace fastseq::step {

namespace {

using Clock = std::chrono::steady_clock;

// How long a call trains before it returns: progress is shown, and signals are heard, 20 times a second.
constexpr auto kPause = std::chrono::milliseconds(50);

// to = weight * from, plus what is there if it `adds`.
template <class T>
void weigh(const T* from, T* to, std::int64_t count, T weight, bool adds) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) to[i] = (adds ? to[i] : T{}) + weight * from[i];
}

// Ends an update of all ranks that fails on this one.
class Exchange {
 public:
  explicit Exchange(Bucketizer& buckets) : buckets_(buckets) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange() {
    if (!buckets_.started()) return;
    try {
      buckets_.abandon();
    } catch (...) {  // NOLINT(bugprone-empty-catch): the error under way tells more
    }
  }

 private:
  Bucketizer& buckets_;
};

}  // namespace

template <class T>
Step<T>::Step(Model<T>& model, Loss loss, const Update<T>& update, std::int64_t chunks,
              std::vector<Gradient<T>> gradients, Bucketizer* buckets, bool bf16)
    : model_(model),
      loss_(std::move(loss)),
      update_(update),
      chunks_(chunks),
      gradients_(std::move(gradients)),
      buckets_(buckets),
      bf16_(bf16) {
  for (std::size_t i = 0; i < gradients_.size(); ++i) {
    if (gradients_[i].fresh != nullptr) numbers_[gradients_[i].fresh] = static_cast<std::int64_t>(i);
  }
}

template <class T>
auto Step<T>::part(const Chunks<T>& chunks, std::size_t index, std::int64_t begin) -> Part {
  const std::int64_t steps = chunks.sizes[index];
  Part part{.chunk = {.steps = steps,
                      .sequences = chunks.sequences,
                      .lengths = nullptr,
                      .training = true,
                      .seed = chunks.seeds.empty() ? 0 : chunks.seeds[index],
                      .parallel_for = model_.parallel_for(),
                      .bf16 = bf16_},
            .x = {.data = chunks.x.data + begin * chunks.x.step, .step = chunks.x.step, .sequence = chunks.x.sequence},
            .targets = chunks.targets};
  Targets<T>& targets = part.targets;
  if (targets.values != nullptr) targets.values += begin * targets.step;
  if (targets.value_weights != nullptr) targets.value_weights += begin * targets.step;
  if (targets.labels != nullptr) targets.labels += begin * targets.step;
  if (targets.weights != nullptr) targets.weights += begin * targets.weight_step;
  if (chunks.lengths != nullptr) {
    lengths_.resize(static_cast<std::size_t>(chunks.sequences));
    std::transform(chunks.lengths, chunks.lengths + chunks.sequences, lengths_.begin(),
                   [&](std::int64_t length) { return std::clamp<std::int64_t>(length - begin, 0, steps); });
    part.chunk.lengths = lengths_.data();
  }
  return part;
}

// Adds the gradients of a chunk, times its weight, to those that are held.
template <class T>
void Step<T>::hold(const Chunk& chunk, double weight, bool adds) {
  model_.backward(chunk, dy_.data(), [](std::span<T* const> /*gradients*/) {});
  for (const Gradient<T>& g : gradients_) {
    best<weigh<T>>(g.fresh, g.held, g.numel, static_cast<T>(weight), adds);
  }
}

// Makes the gradients of an update their means over its samples, on all ranks. `weight` and `loss`: this rank's.
template <class T>
Bucketizer::Result Step<T>::average(const Chunk& chunk, double weight, double loss, bool attention) {
  const double factor = accumulates() && weight > 0 ? 1 / weight : 1;
  if (buckets_ == nullptr) {
    if (weight > 0 && !accumulates()) model_.backward(chunk, dy_.data(), [](std::span<T* const> /*gradients*/) {});
    if (factor != 1) {
      for (const Gradient<T>& g : gradients_) scaled_copy(g.held, kDType<T>, g.numel, factor, g.held, kDType<T>);
    }
    return {.weight = weight, .value = loss, .attention = attention};
  }
  const Exchange exchange(*buckets_);
  buckets_->start(weight, weight > 0 ? loss : 0, attention, factor);
  if (weight > 0 && accumulates()) {
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
      if (gradients_[i].held != nullptr) buckets_->ready(static_cast<std::int64_t>(i), gradients_[i].held);
    }
  } else if (weight > 0) {
    model_.backward(chunk, dy_.data(), [this](std::span<T* const> gradients) {
      for (const T* gradient : gradients) {
        if (const auto found = numbers_.find(gradient); found != numbers_.end()) {
          buckets_->ready(found->second, gradient);
        }
      }
    });
  }
  return buckets_->finish();
}

template <class T>
Outcome Step<T>::train(const Chunks<T>& chunks, std::span<const Settings> settings, const Clipping& clipping,
                       bool attention, Held& held, std::vector<Done>& done) {
  const auto begun = Clock::now();
  std::int64_t begin = 0;
  const auto count = static_cast<std::int64_t>(chunks.sizes.size());
  for (std::int64_t i = 0; i < count; ++i) {
    const Part p = part(chunks, static_cast<std::size_t>(i), begin);
    begin += p.chunk.steps;
    const T* const out = model_.forward(p.chunk, p.x);
    const std::int64_t outputs = model_.outputs();
    T* const dy = dy_.reserve(p.chunk.rows() * outputs);
    const LossValue value = loss_and_gradient(loss_, out, p.targets, p.chunk.steps, p.chunk.sequences, outputs, dy);
    if (value.bad_label) return {.end = End::kBadLabel, .chunks = i};
    if (value.weight > 0) {
      if (!std::isfinite(value.loss)) return {.end = End::kNotFinite, .chunks = i, .loss = value.loss};
      if (accumulates()) hold(p.chunk, value.weight, held.weight > 0);
      held.weight += value.weight;
      held.loss += value.weight * value.loss;
    }
    if (++held.chunks < chunks_) continue;
    const double loss = accumulates() && held.weight > 0 ? held.loss / held.weight : value.loss;
    const Bucketizer::Result mean = average(p.chunk, held.weight, loss, attention);
    held = {};
    if (mean.nonfinite_rank >= 0) {
      return {.end = End::kNonfiniteGradient, .chunks = i, .rank = mean.nonfinite_rank};
    }
    if (mean.weight > 0) {
      const bool known = buckets_ != nullptr && buckets_->finds_norm();
      update_.run(settings, clipping, known ? std::optional(mean.norm) : std::nullopt);
    }
    done.push_back({.loss = mean.value, .weight = mean.weight});
    if (mean.attention || (i + 1 < count && Clock::now() - begun > kPause)) {
      return {.end = End::kPaused, .chunks = i + 1, .attention = mean.attention};
    }
  }
  return {.end = End::kAll, .chunks = count};
}

template class Step<float>;
template class Step<double>;

}  // namespace fastseq::step
