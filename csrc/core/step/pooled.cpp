// Summaries of whole sequences, and the layers behind them, which see one step.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "core/base/isa.h"
#include "core/step/buffer.h"
#include "core/step/layer.h"
#include "core/step/model.h"

namespace fastseq::step {

namespace {

constexpr std::int64_t kTogether = 16;  // features

// The steps of one sequence that count; strides are in elements.
template <class T>
struct Sequence {
  const T* data;
  std::int64_t stride;
  std::int64_t steps;
  std::int64_t features;

  const T* row(std::int64_t t) const { return data + t * stride; }
};

template <class T>
void summarize_last(const Sequence<T>& x, T* y) {
  if (x.steps > 0) {
    std::copy_n(x.row(x.steps - 1), x.features, y);
  } else {
    std::fill_n(y, x.features, T{});
  }
}

template <class T>
void summarize_mean(const Sequence<T>& x, T* y) {
  const auto steps = static_cast<double>(std::max<std::int64_t>(x.steps, 1));
  for (std::int64_t f = 0; f < x.features; f += kTogether) {
    const std::int64_t count = std::min(kTogether, x.features - f);
    double sums[kTogether] = {};
    for (std::int64_t t = 0; t < x.steps; ++t) {
      for (std::int64_t j = 0; j < count; ++j) sums[j] += static_cast<double>(x.row(t)[f + j]);
    }
    for (std::int64_t j = 0; j < count; ++j) y[f + j] = static_cast<T>(sums[j] / steps);
  }
}

template <class T>
void summarize_max(const Sequence<T>& x, T* y) {
  for (std::int64_t f = 0; f < x.features; f += kTogether) {
    const std::int64_t count = std::min(kTogether, x.features - f);
    T most[kTogether];
    std::fill_n(most, kTogether, x.steps > 0 ? -std::numeric_limits<T>::infinity() : T{});
    for (std::int64_t t = 0; t < x.steps; ++t) {
      for (std::int64_t j = 0; j < count; ++j) {
        const T value = x.row(t)[f + j];
        most[j] = value > most[j] || std::isnan(value) ? value : most[j];  // NaN stays
      }
    }
    std::copy_n(most, count, y + f);
  }
}

// Each adds to the gradients of x, whose rows are `stride` elements apart, those of a summary y.
template <class T>
void unsummarize_last(const Sequence<T>& x, const T* /*y*/, const T* dy, T* dx, std::int64_t stride) {
  if (x.steps == 0) return;
  T* const to = dx + (x.steps - 1) * stride;
  for (std::int64_t f = 0; f < x.features; ++f) to[f] += dy[f];
}

template <class T>
void unsummarize_mean(const Sequence<T>& x, const T* /*y*/, const T* dy, T* dx, std::int64_t stride) {
  const T part = 1 / static_cast<T>(std::max<std::int64_t>(x.steps, 1));
  for (std::int64_t t = 0; t < x.steps; ++t) {
    T* const to = dx + t * stride;
    for (std::int64_t f = 0; f < x.features; ++f) to[f] += dy[f] * part;
  }
}

// Steps that have the largest value in common share its gradient, as in torch.
template <class T>
void unsummarize_max(const Sequence<T>& x, const T* y, const T* dy, T* dx, std::int64_t stride) {
  for (std::int64_t f = 0; f < x.features; f += kTogether) {
    const std::int64_t count = std::min(kTogether, x.features - f);
    T each[kTogether] = {};
    for (std::int64_t t = 0; t < x.steps; ++t) {
      for (std::int64_t j = 0; j < count; ++j) each[j] += x.row(t)[f + j] == y[f + j] ? T{1} : T{};
    }
    for (std::int64_t j = 0; j < count; ++j) each[j] = dy[f + j] / each[j];
    for (std::int64_t t = 0; t < x.steps; ++t) {
      T* const to = dx + t * stride + f;
      for (std::int64_t j = 0; j < count; ++j) to[j] += x.row(t)[f + j] == y[f + j] ? each[j] : T{};
    }
  }
}

template <class T>
class Pooled : public Layer<T> {
 public:
  Pooled(std::vector<Pooling> parts, std::int64_t features, std::vector<std::unique_ptr<Layer<T>>> head)
      : parts_(std::move(parts)), features_(features) {
    if (!head.empty()) head_.emplace(std::move(head), serial_for);
  }

  std::int64_t outputs() const override { return head_ ? head_->outputs() : width(); }
  std::vector<T*> gradients() const override { return head_ ? head_->gradients() : std::vector<T*>{}; }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    T* const summaries = summaries_.reserve(chunk.sequences * width());
    auto range = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) summarize(sequence(chunk, x, n), summaries + n * width());
    };
    for_ranges(chunk.parallel_for, chunk.sequences, grain(chunk), range);
    const T* const out = head_ ? head_->forward(one_step(chunk), rows(chunk)) : summaries;
    const std::int64_t numel = chunk.sequences * outputs();
    T* const y = y_.reserve(chunk.steps * numel);
    for (std::int64_t t = 0; t < chunk.steps; ++t) std::copy_n(out, numel, y + t * numel);
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& x, T* dy, bool wants_dx) override {
    const std::int64_t numel = chunk.sequences * outputs();
    for (std::int64_t t = 1; t < chunk.steps; ++t) {
      FASTSEQ_INDEPENDENT
      for (std::int64_t i = 0; i < numel; ++i) dy[i] += dy[t * numel + i];
    }
    if (head_) {
      dy = head_->backward(one_step(chunk), dy, [](std::span<T* const> /*gradients*/) {}, wants_dx);
    }
    if (!wants_dx) return nullptr;
    const std::int64_t stride = chunk.sequences * features_;
    T* const dx = dx_.reserve(chunk.steps * stride);
    std::fill_n(dx, chunk.steps * stride, T{});
    auto range = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t n = begin; n < end; ++n) {
        unsummarize(sequence(chunk, x, n), n * width(), dy, dx + n * features_, stride);
      }
    };
    for_ranges(chunk.parallel_for, chunk.sequences, grain(chunk), range);
    return dx;
  }

 private:
  static constexpr std::int64_t kPerThread = 32 * 1024;  // values

  std::int64_t width() const { return features_ * static_cast<std::int64_t>(parts_.size()); }
  std::int64_t grain(const Chunk& chunk) const {
    return std::max<std::int64_t>(kPerThread / std::max<std::int64_t>(chunk.steps * features_, 1), 1);
  }
  Rows<T> rows(const Chunk& chunk) const { return {summaries_.data(), chunk.sequences * width(), width()}; }

  static Chunk one_step(const Chunk& chunk) {
    Chunk own = chunk;
    own.steps = 1;
    own.lengths = nullptr;
    return own;
  }
  Sequence<T> sequence(const Chunk& chunk, const Rows<T>& x, std::int64_t n) const {
    return {.data = x.data + n * x.sequence,
            .stride = x.step,
            .steps = chunk.lengths == nullptr ? chunk.steps : chunk.lengths[n],
            .features = features_};
  }

  void summarize(const Sequence<T>& x, T* y) const {
    for (const Pooling part : parts_) {
      switch (part) {
        case Pooling::kLast:
          summarize_last(x, y);
          break;
        case Pooling::kMean:
          best<summarize_mean<T>>(x, y);
          break;
        case Pooling::kMax:
          best<summarize_max<T>>(x, y);
          break;
      }
      y += features_;
    }
  }
  // `at`: the place of the sequence's summaries.
  void unsummarize(const Sequence<T>& x, std::int64_t at, const T* dy, T* dx, std::int64_t stride) const {
    for (const Pooling part : parts_) {
      const T* const y = summaries_.data() + at;
      switch (part) {
        case Pooling::kLast:
          unsummarize_last(x, y, dy + at, dx, stride);
          break;
        case Pooling::kMean:
          best<unsummarize_mean<T>>(x, y, dy + at, dx, stride);
          break;
        case Pooling::kMax:
          best<unsummarize_max<T>>(x, y, dy + at, dx, stride);
          break;
      }
      at += features_;
    }
  }

  std::vector<Pooling> parts_;
  std::int64_t features_;
  std::optional<Model<T>> head_;
  Buffer<T> summaries_;  // (sequences, parts, features)
  Buffer<T> y_;
  Buffer<T> dx_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_pooled(std::vector<Pooling> parts, std::int64_t features,
                                      std::vector<std::unique_ptr<Layer<T>>> head) {
  return std::make_unique<Pooled<T>>(std::move(parts), features, std::move(head));
}
template std::unique_ptr<Layer<float>> make_pooled(std::vector<Pooling>, std::int64_t,
                                                   std::vector<std::unique_ptr<Layer<float>>>);
template std::unique_ptr<Layer<double>> make_pooled(std::vector<Pooling>, std::int64_t,
                                                    std::vector<std::unique_ptr<Layer<double>>>);

}  // namespace fastseq::step
