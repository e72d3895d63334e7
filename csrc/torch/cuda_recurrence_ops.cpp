// fastseq::lstm, gru and rnn on CUDA, and their gradients: on the tensors' device, in its current stream.
#include "torch/current_stream.h"

#include <torch/csrc/stable/library.h>

#include "cuda/recurrence_kernels.h"
#include "torch/recurrence_layer.h"

namespace fastseq::torch_ops {

namespace {

class OnCuda {
 public:
  explicit OnCuda(const Tensor& x) : guard_(x.get_device_index()), stream_(current_stream(x)) {}

  static void check(const RecurrenceShape& s) {
    STD_TORCH_CHECK(s.hidden >= 1 && s.hidden <= cuda::kMaxHidden, "on CUDA a layer must have 1 to ", cuda::kMaxHidden,
                    " hidden units, got ", s.hidden, ": use torch.nn's layer");
  }
  static void check_lengths(const RecurrenceShape& /*s*/, const std::int64_t* /*lengths*/) {}  // it would have to wait
  static std::int64_t saved_numel(const RecurrenceShape& shape) { return cuda::saved_numel(shape); }
  void forward(const Layer& layer, const RecurrenceOutputs& outputs) const {
    cuda::recurrence_forward(layer.shape, layer.inputs, outputs, stream_);
  }
  void backward(const Tensor& x, const Layer& layer, const RecurrenceGradients& gradients) const {
    const Tensor scratch = empty_wide(x, cuda::backward_scratch(layer.shape));
    cuda::recurrence_backward(layer.shape, layer.inputs, gradients, scratch.mutable_data_ptr(), stream_);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CUDA, m) {
  m.impl("lstm", TORCH_BOX(&lstm<OnCuda>));
  m.impl("gru", TORCH_BOX(&gru<OnCuda>));
  m.impl("rnn", TORCH_BOX(&rnn<OnCuda>));
  m.impl("recurrence_backward", TORCH_BOX(&backward<OnCuda>));
}

}  // namespace fastseq::torch_ops
