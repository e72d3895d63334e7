// fastseq::lstm, gru and rnn on the CPU, and their gradients.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "torch/recurrence_layer.h"

namespace fastseq::torch_ops {

namespace {

struct OnCpu {
  explicit OnCpu(const Tensor& /*x*/) {}

  static void check(const RecurrenceShape& s) {
    STD_TORCH_CHECK(s.dtype == DType::kFloat32 || s.dtype == DType::kFloat64, "x must be float32 or float64");
  }
  static void check_lengths(const RecurrenceShape& s, const std::int64_t* lengths) {
    STD_TORCH_CHECK(std::all_of(lengths, lengths + s.sequences,
                                [&](std::int64_t length) { return length >= 0 && length <= s.steps; }),
                    "lengths must be between 0 and ", s.steps, ", the number of steps");
  }
  static std::int64_t saved_numel(const RecurrenceShape& shape) { return fastseq::saved_numel(shape); }
  static void forward(const Layer& layer, const RecurrenceOutputs& outputs) {
    recurrence_forward(layer.shape, layer.inputs, outputs, torch_parallel_for);
  }
  static void backward(const Tensor& /*x*/, const Layer& layer, const RecurrenceGradients& gradients) {
    recurrence_backward(layer.shape, layer.inputs, gradients, torch_parallel_for);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm<OnCpu>));
  m.impl("gru", TORCH_BOX(&gru<OnCpu>));
  m.impl("rnn", TORCH_BOX(&rnn<OnCpu>));
  m.impl("recurrence_backward", TORCH_BOX(&backward<OnCpu>));
}

}  // namespace fastseq::torch_ops
