#include "core/step/update.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/base/pack.h"
#include "core/step/layer.h"

namespace fastseq::step {

template <class T>
Update<T>::Update(OptimizerKind optimizer, std::vector<Parameter<T>> parameters)
    : optimizer_(optimizer), parameters_(std::move(parameters)) {}

template <class T>
void Update<T>::clip(const Clipping& clipping, std::optional<double> norm) const {
  if (clipping.value) {
    const T most = static_cast<T>(*clipping.value);
    for (const Parameter<T>& p : parameters_) {
      for (std::int64_t i = 0; i < p.numel; ++i) p.gradient[i] = std::clamp(p.gradient[i], -most, most);
    }
  }
  if (!clipping.norm) return;
  std::vector<double> squares;  // of each part
  for (const Parameter<T>& p : parameters_) {
    const auto part = static_cast<std::size_t>(p.part);
    if (part >= squares.size()) squares.resize(part + 1);
    if (!norm) squares[part] += facts_of(p.gradient, p.numel, kDType<T>).sum_of_squares;
  }
  for (const Parameter<T>& p : parameters_) {
    const double own = norm ? *norm : std::sqrt(squares[static_cast<std::size_t>(p.part)]);
    const double factor = *clipping.norm / (own + 1e-6);
    if (!(factor >= 1)) scaled_copy(p.gradient, kDType<T>, p.numel, factor, p.gradient, kDType<T>);
  }
}

template <class T>
void Update<T>::run(std::span<const Settings> settings, const Clipping& clipping, std::optional<double> norm) const {
  clip(clipping, norm);
  optimizer_step<T>(optimizer_, settings, parameters_);
}

template class Update<float>;
template class Update<double>;

}  // namespace fastseq::step
