// The next time step of series that are not complete yet: what a server calls for each sample.
//
//     Model<float> model(layers, serial_for);           // see layer.h; weights stay where they are
//     model.set_state(state);                           // memory for h and c, zeros at a series' start
//     StepPredictor<float> predictor(model, inputs);
//     while (next(x)) predictor.run(x, sequences, y);   // continues from the state, and advances it
#pragma once

#include <cstdint>

#include "core/step/buffer.h"
#include "core/step/model.h"

namespace fastseq::step {

// Of each feature, in fp64: (value - center) / scale; null: none.
struct Scaling {
  const double* center = nullptr;
  const double* scale = nullptr;
};

template <class T>
class StepPredictor {
 public:
  // `inputs`: features of x. The model, and the numbers of the scaling, must outlive this.
  StepPredictor(Model<T>& model, std::int64_t inputs, Scaling x = {}, Scaling y = {});

  std::int64_t inputs() const { return inputs_; }

  // Runs the next time step, without dropout. x: (sequences, inputs), which is scaled; y: (sequences, outputs), scaled
  // back. Both contiguous, of fp32 or fp64. Returns whether all inputs, scaled, were finite; if not, nothing has
  // happened.
  template <class X, class Y>
  bool run(const X* x, std::int64_t sequences, Y* y);

 private:
  Model<T>& model_;
  std::int64_t inputs_;
  Scaling x_scaling_;
  Scaling y_scaling_;
  Buffer<T> x_;
};

}  // namespace fastseq::step
