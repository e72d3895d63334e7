#include "core/step/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/isa.h"

namespace fastseq::step {

namespace {

// Each returns a loss and sets its derivative by the output.
struct Mse {
  template <class T>
  static T of(T out, T y, T /*parameter*/, T& slope) {
    const T d = out - y;
    slope = 2 * d;
    return d * d;
  }
};

struct Mae {
  template <class T>
  static T of(T out, T y, T /*parameter*/, T& slope) {
    const T d = out - y;
    slope = d > 0 ? T{1} : d < 0 ? T{-1} : d * 0;  // NaN stays
    return std::abs(d);
  }
};

struct Huber {
  template <class T>
  static T of(T out, T y, T delta, T& slope) {
    const T d = out - y;
    const T size = std::abs(d);
    const bool near = size <= delta;
    slope = near ? d : std::copysign(delta, d) + d * 0;
    return near ? d * d / 2 : delta * (size - delta / 2);
  }
};

struct SmoothL1 {
  template <class T>
  static T of(T out, T y, T beta, T& slope) {
    const T d = out - y;
    const T size = std::abs(d);
    const bool near = size < beta;
    slope = near ? d / beta : d > 0 ? T{1} : d < 0 ? T{-1} : d * 0;
    return near ? d * d / (2 * beta) : size - beta / 2;
  }
};

struct BinaryWithLogits {
  template <class T>
  static T of(T out, T y, T /*parameter*/, T& slope) {
    const T e = std::exp(-std::abs(out));
    slope = (out >= 0 ? 1 / (1 + e) : e / (1 + e)) - y;
    return std::max(out, T{}) + out * 0 - out * y + std::log1p(e);
  }
};

struct Pinball {
  template <class T>
  static T of(T out, T y, T level, T& slope) {
    const T d = y - out;
    const T below = level * d;
    const T above = (level - 1) * d;
    slope = below > above ? -level : below < above ? 1 - level : (1 - 2 * level) / 2;
    return below > above ? below : above;  // NaN stays
  }
};

constexpr std::int64_t kPartial = 16;  // sums side by side

// Adds up the losses of contiguous elements and writes their slopes.
template <class Kind, class T>
double run_of_elements(const T* out, const T* y, std::int64_t count, T parameter, T factor, T* dy) {
  double total = 0;
  std::int64_t i = 0;
  T sums[kPartial] = {};
  for (; i + kPartial <= count; i += kPartial) {
    FASTSEQ_INDEPENDENT
    for (std::int64_t j = 0; j < kPartial; ++j) {
      T slope;
      sums[j] += Kind::of(out[i + j], y[i + j], parameter, slope);
      dy[i + j] = slope * factor;
    }
  }
  for (; i < count; ++i) {
    T slope;
    total += static_cast<double>(Kind::of(out[i], y[i], parameter, slope));
    dy[i] = slope * factor;
  }
  for (const T sum : sums) total += static_cast<double>(sum);
  return total;
}

// Of steps [begin, end).
template <class T>
double sum_of_weights(const Targets<T>& t, std::int64_t begin, std::int64_t end, std::int64_t sequences) {
  if (t.weights == nullptr) return static_cast<double>((end - begin) * sequences);
  double total = 0;
  for (std::int64_t s = begin; s < end; ++s) {
    for (std::int64_t n = 0; n < sequences; ++n) {
      total += static_cast<double>(t.weights[s * t.weight_step + n * t.weight_sequence]);
    }
  }
  return total;
}

template <class T>
T inverse(double weight) {
  return static_cast<T>(1 / std::max(weight, static_cast<double>(std::numeric_limits<T>::min())));
}

template <class Kind, class T>
LossValue elements(const T* out, const Targets<T>& t, std::int64_t steps, std::int64_t sequences, std::int64_t outputs,
                   T parameter, T* dy) {
  const std::int64_t begin = t.last_only ? std::max<std::int64_t>(steps - 1, 0) : 0;
  const double weight = sum_of_weights(t, begin, steps, sequences);
  const T scale = inverse<T>(weight * static_cast<double>(outputs));
  double total = 0;
  std::fill_n(dy, begin * sequences * outputs, T{});
  const auto run = [&](std::int64_t row, const T* y, std::int64_t count, T factor) {
    return best<run_of_elements<Kind, T>>(out + row * outputs, y, count, parameter, factor, dy + row * outputs);
  };
  for (std::int64_t s = begin; s < steps; ++s) {
    const T* const y = t.values + s * t.step;
    if (t.weights == nullptr && (t.sequence == outputs || sequences == 1)) {
      total += run(s * sequences, y, sequences * outputs, scale);
      continue;
    }
    for (std::int64_t n = 0; n < sequences; ++n) {
      const T w = t.weights == nullptr ? T{1} : t.weights[s * t.weight_step + n * t.weight_sequence];
      const std::int64_t row = s * sequences + n;
      if (w > 0) {
        total += static_cast<double>(w) * run(row, y + n * t.sequence, outputs, w * scale);
      } else {
        std::fill_n(dy + row * outputs, outputs, T{});
      }
    }
  }
  return {.loss = total /
                  std::max(weight * static_cast<double>(outputs), static_cast<double>(std::numeric_limits<T>::min())),
          .weight = sum_of_weights(t, 0, steps, sequences),
          .bad_label = false};
}

// Calls fn(row, target, its weights or null, whether the sample's weight is positive) for the samples of steps [begin,
// steps).
template <class T, class Fn>
void for_samples(const Targets<T>& t, std::int64_t begin, std::int64_t steps, std::int64_t sequences, const Fn& fn) {
  for (std::int64_t s = begin; s < steps; ++s) {
    for (std::int64_t n = 0; n < sequences; ++n) {
      const bool counts = t.weights == nullptr || t.weights[s * t.weight_step + n * t.weight_sequence] > 0;
      const std::int64_t at = s * t.step + n * t.sequence;
      fn(s * sequences + n, t.values + at, t.value_weights == nullptr ? nullptr : t.value_weights + at, counts);
    }
  }
}

// A sum over known targets; for each there is an output for each of the parameters, and of each member.
template <class Kind, class T>
LossValue known_elements(const Loss& loss, const T* out, const Targets<T>& t, std::int64_t steps,
                         std::int64_t sequences, std::int64_t outputs, const std::vector<T>& parameters, T* dy) {
  const std::int64_t begin = t.last_only ? std::max<std::int64_t>(steps - 1, 0) : 0;
  const auto each = static_cast<std::int64_t>(parameters.size());
  const std::int64_t own = outputs / loss.members;
  const std::int64_t targets = own / each;
  const std::vector<T> factors(loss.part_weights.begin(), loss.part_weights.end());
  const auto weight_of = [&](const T* weights, std::int64_t i) {
    const T weight = weights == nullptr ? T{1} : weights[i];
    if (factors.empty()) return weight;
    return weight * factors[static_cast<std::size_t>(i / (targets / static_cast<std::int64_t>(factors.size())))];
  };
  const auto is_known = [&](T target, T weight) { return std::isfinite(target) && (factors.empty() || weight > 0); };
  std::int64_t count = 0;
  for_samples(t, begin, steps, sequences, [&](std::int64_t /*row*/, const T* y, const T* weights, bool counts) {
    for (std::int64_t i = 0; counts && i < targets; ++i) count += is_known(y[i], weight_of(weights, i)) ? 1 : 0;
  });
  const double scale = 1 / static_cast<double>(std::max<std::int64_t>(count, 1) * each);
  double total = 0;
  std::fill_n(dy, begin * sequences * outputs, T{});
  for_samples(t, begin, steps, sequences, [&](std::int64_t row, const T* y, const T* weights, bool counts) {
    for (std::int64_t i = 0; i < outputs; ++i) {
      const T target = y[i % own / each];
      const T weight = weight_of(weights, i % own / each);
      const bool known = counts && is_known(target, weight);
      const T parameter = parameters[static_cast<std::size_t>(i % each)];
      T slope;
      const T value = Kind::of(out[row * outputs + i], known ? target : T{}, parameter, slope);
      if (known) total += static_cast<double>(value * weight);
      // An output that is NaN stays so.
      dy[row * outputs + i] = slope * (known ? weight * static_cast<T>(scale) : T{});
    }
  });
  return {.loss = total * scale / static_cast<double>(loss.members),
          .weight = sum_of_weights(t, 0, steps, sequences),
          .bad_label = false};
}

// A sample's loss of class numbers; its slopes, times `factor`.
template <class T>
double cross_entropy(const T* out, std::int64_t outputs, std::int64_t label, T factor, T* dy) {
  T most = out[0];
  for (std::int64_t k = 1; k < outputs; ++k) most = std::max(most, out[k]);
  T sum = 0;
  for (std::int64_t k = 0; k < outputs; ++k) {
    dy[k] = std::exp(out[k] - most);
    sum += dy[k];
  }
  const T each = factor / sum;
  for (std::int64_t k = 0; k < outputs; ++k) dy[k] *= each;
  dy[label] -= factor;
  return static_cast<double>(std::log(sum)) + static_cast<double>(most - out[label]);
}

template <class T>
LossValue classes(const T* out, const Targets<T>& t, std::int64_t steps, std::int64_t sequences, std::int64_t outputs,
                  T* dy) {
  const std::int64_t begin = t.last_only ? std::max<std::int64_t>(steps - 1, 0) : 0;
  const double weight = sum_of_weights(t, begin, steps, sequences);
  const T scale = inverse<T>(weight);
  double total = 0;
  std::fill_n(dy, begin * sequences * outputs, T{});
  for (std::int64_t s = begin; s < steps; ++s) {
    for (std::int64_t n = 0; n < sequences; ++n) {
      const std::int64_t label = t.labels[s * t.step + n * t.sequence];
      if (label < 0 || label >= outputs) return {.loss = 0, .weight = 0, .bad_label = true};
      const T w = t.weights == nullptr ? T{1} : t.weights[s * t.weight_step + n * t.weight_sequence];
      const std::int64_t at = (s * sequences + n) * outputs;
      if (w > 0) {
        total += static_cast<double>(w) * cross_entropy(out + at, outputs, label, w * scale, dy + at);
      } else {
        std::fill_n(dy + at, outputs, T{});
      }
    }
  }
  return {.loss = total / std::max(weight, static_cast<double>(std::numeric_limits<T>::min())),
          .weight = sum_of_weights(t, 0, steps, sequences),
          .bad_label = false};
}

}  // namespace

template <class T>
LossValue loss_and_gradient(const Loss& loss, const T* out, const Targets<T>& targets, std::int64_t steps,
                            std::int64_t sequences, std::int64_t outputs, T* dy) {
  const auto by = [&]<class Kind>(Kind /*kind*/) {
    std::vector<T> parameters(loss.parameters.begin(), loss.parameters.end());
    if (parameters.empty()) parameters.push_back(0);
    if (loss.of_known || loss.kind == LossKind::kPinball) {
      return known_elements<Kind>(loss, out, targets, steps, sequences, outputs, parameters, dy);
    }
    return elements<Kind>(out, targets, steps, sequences, outputs, parameters[0], dy);
  };
  switch (loss.kind) {
    case LossKind::kMse:
      return by(Mse());
    case LossKind::kMae:
      return by(Mae());
    case LossKind::kHuber:
      return by(Huber());
    case LossKind::kSmoothL1:
      return by(SmoothL1());
    case LossKind::kBinaryWithLogits:
      return by(BinaryWithLogits());
    case LossKind::kCrossEntropy:
      return classes(out, targets, steps, sequences, outputs, dy);
    case LossKind::kPinball:
      return by(Pinball());
  }
  return {};
}

template LossValue loss_and_gradient(const Loss&, const float*, const Targets<float>&, std::int64_t, std::int64_t,
                                     std::int64_t, float*);
template LossValue loss_and_gradient(const Loss&, const double*, const Targets<double>&, std::int64_t, std::int64_t,
                                     std::int64_t, double*);

}  // namespace fastseq::step
