#include "core/step/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/base/isa.h"

namespace fastseq::step {

namespace {

// Numbers of one step of one parameter.
template <class T>
struct Numbers {
  T lr;
  T weight_decay;
  T shrink;  // what decoupled decay leaves
  T momentum;
  T fresh;  // the part of a gradient that joins its average
  T beta1;
  T beta2;
  T eps;
  T step_size;
  T root_correction;  // of Adam's second moment
  T sign;
  bool decays;
  bool nesterov;
  bool amsgrad;
  bool centered;
};

// Without decay nothing of the value joins the gradient, though it may be infinite.
template <class T>
T pull(const Numbers<T>& n, T gradient, T value) {
  return n.sign * gradient + (n.decays ? n.weight_decay * value : T{});
}

template <class T>
void sgd(const Parameter<T>& p, const Numbers<T>& n) {
  T* const value = p.value;
  const T* const gradient = p.gradient;
  if (p.average == nullptr) {
    FASTSEQ_INDEPENDENT
    for (std::int64_t i = 0; i < p.numel; ++i) {
      value[i] -= n.lr * pull(n, gradient[i], value[i]);
    }
    return;
  }
  T* const average = p.average;
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < p.numel; ++i) {
    const T g = pull(n, gradient[i], value[i]);
    average[i] = n.momentum * average[i] + n.fresh * g;
    value[i] -= n.lr * (n.nesterov ? g + n.momentum * average[i] : average[i]);
  }
}

template <class T>
void adam(const Parameter<T>& p, const Numbers<T>& n) {
  T* const value = p.value;
  T* const average = p.average;
  T* const square = p.square;
  T* const largest = p.other;
  const T* const gradient = p.gradient;
  if (n.amsgrad) {
    FASTSEQ_INDEPENDENT
    for (std::int64_t i = 0; i < p.numel; ++i) {
      const T before = value[i] * n.shrink;
      const T g = pull(n, gradient[i], before);
      average[i] += n.fresh * (g - average[i]);
      square[i] = n.beta2 * square[i] + (1 - n.beta2) * g * g;
      largest[i] = square[i] <= largest[i] ? largest[i] : square[i];  // NaN stays
      value[i] = before - n.step_size * average[i] / (std::sqrt(largest[i]) / n.root_correction + n.eps);
    }
    return;
  }
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < p.numel; ++i) {
    const T before = value[i] * n.shrink;
    const T g = pull(n, gradient[i], before);
    average[i] += n.fresh * (g - average[i]);
    square[i] = n.beta2 * square[i] + (1 - n.beta2) * g * g;
    value[i] = before - n.step_size * average[i] / (std::sqrt(square[i]) / n.root_correction + n.eps);
  }
}

template <class T>
void rms_prop(const Parameter<T>& p, const Numbers<T>& n) {
  for (std::int64_t i = 0; i < p.numel; ++i) {
    const T g = pull(n, p.gradient[i], p.value[i]);
    p.square[i] = n.beta1 * p.square[i] + (1 - n.beta1) * g * g;
    T variance = p.square[i];
    if (n.centered) {
      p.average[i] += (1 - n.beta1) * (g - p.average[i]);
      variance -= p.average[i] * p.average[i];
    }
    T move = g / (std::sqrt(variance) + n.eps);
    if (p.other != nullptr) move = p.other[i] = n.momentum * p.other[i] + move;
    p.value[i] -= n.lr * move;
  }
}

double count_step(void* step, DType dtype) {
  if (step == nullptr) return 0;
  if (dtype == DType::kFloat64) return *static_cast<double*>(step) += 1;
  return *static_cast<float*>(step) += 1;
}

template <class T>
Numbers<T> numbers_of(OptimizerKind kind, const Settings& s, double step) {
  Numbers<T> n{};
  const auto as = [](double x) { return static_cast<T>(x); };
  n.lr = as(s.lr);
  n.shrink = s.decoupled ? as(1 - s.lr * s.weight_decay) : T{1};
  n.weight_decay = s.decoupled ? T{} : as(s.weight_decay);
  n.decays = n.weight_decay != 0;
  n.momentum = as(s.momentum);
  n.beta1 = as(s.beta1);
  n.beta2 = as(s.beta2);
  n.eps = as(s.eps);
  n.sign = s.maximize ? T{-1} : T{1};
  n.nesterov = s.nesterov;
  n.amsgrad = s.amsgrad;
  n.centered = s.centered;
  n.fresh = as(kind == OptimizerKind::kSgd ? 1 - s.dampening : 1 - s.beta1);
  if (kind == OptimizerKind::kAdam) {
    n.step_size = as(s.lr / (1 - std::pow(s.beta1, step)));
    n.root_correction = as(std::sqrt(1 - std::pow(s.beta2, step)));
  }
  return n;
}

}  // namespace

template <class T>
void optimizer_step(OptimizerKind kind, std::span<const Settings> settings, std::span<const Parameter<T>> parameters) {
  Numbers<T> numbers{};
  double last_step = -1;
  std::int64_t last_group = -1;
  for (const Parameter<T>& p : parameters) {
    const Settings& s = settings[static_cast<std::size_t>(p.group)];
    const double step = count_step(p.step, p.step_dtype);
    if (step != last_step || p.group != last_group) numbers = numbers_of<T>(kind, s, step);
    last_step = step;
    last_group = p.group;
    switch (kind) {
      case OptimizerKind::kSgd:
        best<sgd<T>>(p, numbers);
        break;
      case OptimizerKind::kAdam:
        best<adam<T>>(p, numbers);
        break;
      case OptimizerKind::kRmsProp:
        best<rms_prop<T>>(p, numbers);
        break;
    }
  }
}

template void optimizer_step(OptimizerKind, std::span<const Settings>, std::span<const Parameter<float>>);
template void optimizer_step(OptimizerKind, std::span<const Settings>, std::span<const Parameter<double>>);

}  // namespace fastseq::step
