#include "core/step/update.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

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
    if (!norm) squares[part] += best<sum_of_squares<T>>(p.gradient, p.numel);
  }
  for (const Parameter<T>& p : parameters_) {
    const double own = norm ? *norm : std::sqrt(squares[static_cast<std::size_t>(p.part)]);
    const double factor = *clipping.norm / (own + 1e-6);
    if (!(factor >= 1)) best<scale<T>>(p.gradient, p.numel, static_cast<T>(factor));
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
