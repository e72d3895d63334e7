// Steps of optimizers, as torch.optim makes them, on tensors that torch's optimizer owns.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"

namespace fastseq::step {

enum class OptimizerKind : std::uint8_t { kSgd, kAdam, kRmsProp };

// Numbers of a group of parameters; those that a kind has no use for are ignored.
struct Settings {
  double lr = 0;
  double weight_decay = 0;
  double momentum = 0;   // SGD, RMSprop
  double dampening = 0;  // SGD
  double beta1 = 0;      // Adam; RMSprop's alpha
  double beta2 = 0;
  double eps = 0;
  bool nesterov = false;
  bool maximize = false;
  bool decoupled = false;  // AdamW's decay
  bool amsgrad = false;
  bool centered = false;  // RMSprop
};

// A parameter with its optimizer's state; what a kind or its settings have no use for is null.
template <class T>
struct Parameter {
  T* value;
  T* gradient;
  std::int64_t numel;
  T* average;  // of gradients: momentum_buffer, exp_avg, grad_avg
  T* square;   // of squares: exp_avg_sq, square_avg
  T* other;    // max_exp_avg_sq, RMSprop's momentum_buffer
  void* step;  // its count of steps, one element
  DType step_dtype;
  std::int64_t group;     // in `settings`
  std::int64_t part = 0;  // parameters of one are clipped together
};

template <class T>
void optimizer_step(OptimizerKind kind, std::span<const Settings> settings, std::span<const Parameter<T>> parameters);

}  // namespace fastseq::step
