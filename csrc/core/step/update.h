// What follows a backward pass: clipping and the optimizer's step.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "core/step/optimizer.h"

namespace fastseq::step {

struct Clipping {
  std::optional<double> value;  // of each element
  std::optional<double> norm;   // of all gradients of a part
};

template <class T>
class Update {
 public:
  // Parameters: those that the optimizer updates.
  Update(OptimizerKind optimizer, std::vector<Parameter<T>> parameters);

  // `norm`: that of all gradients, if it is known; then there is one part.
  void run(std::span<const Settings> settings, const Clipping& clipping, std::optional<double> norm = {}) const;

 private:
  void clip(const Clipping& clipping, std::optional<double> norm) const;

  OptimizerKind optimizer_;
  std::vector<Parameter<T>> parameters_;
};

}  // namespace fastseq::step
