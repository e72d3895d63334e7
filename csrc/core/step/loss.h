// Losses of a chunk, means over samples as fastseq.seqloss defines them, and their gradients.
#pragma once

#include <cstdint>
#include <vector>

namespace fastseq::step {

enum class LossKind : std::uint8_t {
  kMse,
  kMae,
  kHuber,             // parameter: delta
  kSmoothL1,          // parameter: beta
  kBinaryWithLogits,  // targets from 0 to 1
  kCrossEntropy,      // targets are class numbers
  kPinball,           // parameters: levels of quantiles
};

struct Loss {
  LossKind kind;
  std::vector<double> parameters = {};  // at most one, but for kPinball
  // The sum over targets that are finite, divided by their number, of samples whose weight is not 0, instead of the
  // weighted mean over samples; always so with kPinball.
  bool of_known = false;
  // With `of_known`: factors of the targets' weights, for equal parts of the targets; without a weight a target then is
  // not known. Empty: 1.
  std::vector<double> part_weights = {};
  // With `of_known`: outputs of several members side by side. The loss is the mean of theirs, each gets the gradient of
  // its own.
  std::int64_t members = 1;
};

// What a chunk's outputs are compared with. Strides are in elements; features are contiguous.
template <class T>
struct Targets {
  const T* values;             // (steps, sequences, outputs), those of a member, with kPinball / levels; or null:
  const T* value_weights;      // of each value, with Loss::of_known, or null: 1
  const std::int64_t* labels;  // (steps, sequences)
  std::int64_t step;
  std::int64_t sequence;
  const T* weights;  // (steps, sequences), or null: 1; not negative. Samples of weight 0 do not count, even if NaN
  std::int64_t weight_step;
  std::int64_t weight_sequence;
  bool last_only;  // only outputs of the last step are compared
};

struct LossValue {
  double loss;     // the weighted mean over samples of means over outputs, or that over known targets
  double weight;   // the sum of the weights, of all steps
  bool bad_label;  // there is a label that is no class; loss and gradient are not set
};

// out: outputs, contiguous. dy: their gradients, written.
template <class T>
LossValue loss_and_gradient(const Loss& loss, const T* out, const Targets<T>& targets, std::int64_t steps,
                            std::int64_t sequences, std::int64_t outputs, T* dy);

}  // namespace fastseq::step
