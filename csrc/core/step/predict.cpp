#include "core/step/predict.h"

#include <cmath>

namespace fastseq::step {

template <class T>
StepPredictor<T>::StepPredictor(Model<T>& model, std::int64_t inputs, Scaling x, Scaling y)
    : model_(model), inputs_(inputs), x_scaling_(x), y_scaling_(y) {}

template <class T>
template <class X, class Y>
bool StepPredictor<T>::run(const X* x, std::int64_t sequences, Y* y) {
  T* const in = x_.reserve(sequences * inputs_);
  for (std::int64_t n = 0; n < sequences; ++n) {
    for (std::int64_t f = 0; f < inputs_; ++f) {
      const std::int64_t i = n * inputs_ + f;
      const auto given = static_cast<double>(x[i]);
      in[i] =
          static_cast<T>(x_scaling_.center == nullptr ? given : (given - x_scaling_.center[f]) / x_scaling_.scale[f]);
      if (!std::isfinite(in[i])) return false;
    }
  }
  const Chunk chunk{.steps = 1,
                    .sequences = sequences,
                    .lengths = nullptr,
                    .training = false,
                    .seed = 0,
                    .parallel_for = model_.parallel_for()};
  const T* const out = model_.forward(chunk, {.data = in, .step = sequences * inputs_, .sequence = inputs_});
  const std::int64_t outputs = model_.outputs();
  for (std::int64_t n = 0; n < sequences; ++n) {
    for (std::int64_t k = 0; k < outputs; ++k) {
      const std::int64_t i = n * outputs + k;
      const auto value = static_cast<double>(out[i]);
      y[i] = static_cast<Y>(y_scaling_.center == nullptr ? value : value * y_scaling_.scale[k] + y_scaling_.center[k]);
    }
  }
  return true;
}

template class StepPredictor<float>;
template class StepPredictor<double>;
template bool StepPredictor<float>::run(const float*, std::int64_t, float*);
template bool StepPredictor<float>::run(const float*, std::int64_t, double*);
template bool StepPredictor<float>::run(const double*, std::int64_t, float*);
template bool StepPredictor<float>::run(const double*, std::int64_t, double*);
template bool StepPredictor<double>::run(const float*, std::int64_t, float*);
template bool StepPredictor<double>::run(const float*, std::int64_t, double*);
template bool StepPredictor<double>::run(const double*, std::int64_t, float*);
template bool StepPredictor<double>::run(const double*, std::int64_t, double*);

}  // namespace fastseq::step
