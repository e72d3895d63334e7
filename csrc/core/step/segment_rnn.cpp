// The default model of forecasters: the sum of the last value, of a linear path and of a GRU over segments.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/step/buffer.h"
#include "core/step/layer.h"
#include "core/step/model.h"

namespace fastseq::step {

namespace {

template <class T, class... More>
std::vector<std::unique_ptr<Layer<T>>> listed(std::unique_ptr<Layer<T>> first, More... more) {
  std::vector<std::unique_ptr<Layer<T>>> layers;
  layers.push_back(std::move(first));
  (layers.push_back(std::move(more)), ...);
  return layers;
}

template <class T>
class SegmentRnn : public Layer<T> {
 public:
  SegmentRnn(const SegmentRnnOptions& options, SegmentRnnParts<T> parts)
      : options_(options),
        segments_(options.lags / options.segment),
        gain_(static_cast<T>(1 / std::sqrt(static_cast<double>(options.lags)))),
        linear_(std::move(parts.linear)),
        encoder_(listed(std::move(parts.embed), make_activation<T>(Activation::kRelu, options.hidden),
                        std::move(parts.recurrent)),
                 serial_for),
        decoder_(listed(std::move(parts.mix), make_activation<T>(Activation::kRelu, options.hidden),
                        std::move(parts.dropout), std::move(parts.out)),
                 serial_for) {}

  std::int64_t outputs() const override { return options_.horizon * options_.variables * options_.outputs; }
  std::vector<T*> gradients() const override {
    std::vector<T*> all = linear_->gradients();
    for (const std::vector<T*>& more : {encoder_.gradients(), decoder_.gradients()}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    const std::int64_t windows = chunk.rows();
    lay_out(chunk, x);
    const Chunk each = values_chunk(chunk);
    const T* const straight = linear_->forward(each, rows(each, values_.data(), options_.lags));
    const Chunk over = inner(chunk, segments_, windows);
    const T* const encoded = encoder_.forward(over, rows(over, seen_.data(), width()));
    const Chunk one = inner(chunk, 1, windows);
    const T* const last = encoded + (segments_ - 1) * windows * options_.hidden;
    const T* const changes = decoder_.forward(one, rows(one, last, options_.hidden));
    T* const y = y_.reserve(windows * outputs());
    for (std::int64_t w = 0; w < windows; ++w) {
      for_outputs([&](std::int64_t variable, std::int64_t own, std::int64_t of_linear) {
        const std::int64_t i = w * outputs() + own;
        y[i] = level_.data()[w * options_.variables + variable] + straight[w * outputs() + of_linear] + changes[i];
      });
    }
    return y;
  }

  T* backward(const Chunk& chunk, const Rows<T>& /*x*/, T* dy, bool /*wants_dx*/) override {
    const std::int64_t windows = chunk.rows();
    T* const straight = d_straight_.reserve(windows * outputs());
    for (std::int64_t w = 0; w < windows; ++w) {
      for_outputs([&](std::int64_t /*variable*/, std::int64_t own, std::int64_t of_linear) {
        straight[w * outputs() + of_linear] = dy[w * outputs() + own];
      });
    }
    const Chunk each = values_chunk(chunk);
    linear_->backward(each, rows(each, values_.data(), options_.lags), straight, false);
    const auto ignored = [](std::span<T* const> /*gradients*/) {};
    const T* const last = decoder_.backward(inner(chunk, 1, windows), dy, ignored, true);
    const std::int64_t before = (segments_ - 1) * windows * options_.hidden;
    T* const encoded = d_encoded_.reserve(before + windows * options_.hidden);
    std::fill_n(encoded, before, T{});
    std::copy_n(last, windows * options_.hidden, encoded + before);
    encoder_.backward(inner(chunk, segments_, windows), encoded, ignored);
    return nullptr;
  }

 private:
  std::int64_t width() const { return (options_.segment + 1) * options_.variables; }

  static Chunk inner(const Chunk& chunk, std::int64_t steps, std::int64_t sequences) {
    Chunk own = chunk;
    own.steps = steps;
    own.sequences = sequences;
    own.lengths = nullptr;
    return own;
  }
  Chunk values_chunk(const Chunk& chunk) const { return inner(chunk, 1, chunk.rows() * options_.variables); }
  static Rows<T> rows(const Chunk& chunk, const T* data, std::int64_t features) {
    return {data, chunk.sequences * features, features};
  }

  // Calls fn(variable, place among a window's outputs, place among those of the linear path).
  template <class Fn>
  void for_outputs(const Fn& fn) const {
    const std::int64_t horizon = options_.horizon;
    const std::int64_t variables = options_.variables;
    const std::int64_t outputs = options_.outputs;
    for (std::int64_t h = 0; h < horizon; ++h) {
      for (std::int64_t k = 0; k < variables; ++k) {
        for (std::int64_t q = 0; q < outputs; ++q) {
          fn(k, (h * variables + k) * outputs + q, (k * horizon + h) * outputs + q);
        }
      }
    }
  }

  // Writes what the paths see of each window.
  void lay_out(const Chunk& chunk, const Rows<T>& x) {
    const std::int64_t windows = chunk.rows();
    values_.reserve(windows * options_.variables * options_.lags);
    seen_.reserve(segments_ * windows * width());
    level_.reserve(windows * options_.variables);
    auto range = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t w = begin; w < end; ++w) {
        const T* const row = x.data + w / chunk.sequences * x.step + w % chunk.sequences * x.sequence;
        for (std::int64_t k = 0; k < options_.variables; ++k) lay_out_window(windows, w, k, row);
      }
    };
    for_ranges(chunk.parallel_for, windows, std::max<std::int64_t>(kPerThread / options_.lags, 1), range);
  }
  void lay_out_window(std::int64_t windows, std::int64_t w, std::int64_t k, const T* row) {
    const std::int64_t variables = options_.variables;
    const std::int64_t lags = options_.lags;
    const std::int64_t segment = options_.segment;
    const auto value = [&](std::int64_t lag) { return row[(lag + 1) * options_.features - variables + k]; };
    const T level = value(lags - 1);
    level_.data()[w * variables + k] = level;
    T* const values = values_.data() + (w * variables + k) * lags;
    for (std::int64_t lag = 0; lag < lags; ++lag) values[lag] = gain_ * (value(lag) - level);
    const std::int64_t first = lags - segments_ * segment;
    T before = value(first);
    for (std::int64_t i = 0; i < segments_; ++i) {
      T* const to = seen_.data() + (i * windows + w) * width() + k;
      const std::int64_t begin = first + i * segment;
      const T last = value(begin + segment - 1);
      for (std::int64_t s = 0; s < segment; ++s) to[s * variables] = value(begin + s) - last;
      to[segment * variables] = last - before;
      before = last;
    }
  }

  static constexpr std::int64_t kPerThread = 32 * 1024;  // values

  SegmentRnnOptions options_;
  std::int64_t segments_;
  T gain_;
  std::unique_ptr<Layer<T>> linear_;
  Model<T> encoder_;
  Model<T> decoder_;
  Buffer<T> values_;  // (windows, variables, lags), less the level, for the linear path
  Buffer<T> seen_;    // (segments, windows, segment + 1, variables)
  Buffer<T> level_;   // (windows, variables)
  Buffer<T> y_;
  Buffer<T> d_straight_;
  Buffer<T> d_encoded_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_segment_rnn(const SegmentRnnOptions& options, SegmentRnnParts<T> parts) {
  return std::make_unique<SegmentRnn<T>>(options, std::move(parts));
}
template std::unique_ptr<Layer<float>> make_segment_rnn(const SegmentRnnOptions&, SegmentRnnParts<float>);
template std::unique_ptr<Layer<double>> make_segment_rnn(const SegmentRnnOptions&, SegmentRnnParts<double>);

}  // namespace fastseq::step
