// The checks of fastseq::bmm, shared by its CPU and CUDA implementations.
#pragma once

#include "core/products/bmm.h"
#include "torch/tensors.h"

namespace fastseq::torch_ops {

struct BmmArgs {
  BmmShape shape;
  DType dtype;
  MatrixBatch a;
  MatrixBatch b;
  Tensor out;  // (batch, m, n), contiguous, not yet filled
};

inline MatrixBatch matrix_batch(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline BmmArgs bmm_args(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.dim() == 3 && b.dim() == 3, "bmm: a and b must have 3 dimensions, got ", a.dim(), " and ", b.dim());
  STD_TORCH_CHECK(a.size(0) == b.size(0) && a.size(2) == b.size(1), "bmm: expected a (B, m, k) and b (B, k, n), got (",
                  a.size(0), ", ", a.size(1), ", ", a.size(2), ") and (", b.size(0), ", ", b.size(1), ", ", b.size(2),
                  ")");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(),
                  "bmm: a and b must have one dtype and one device");
  return {.shape = {.batch = a.size(0), .m = a.size(1), .k = a.size(2), .n = b.size(2)},
          .dtype = to_dtype(a.scalar_type()),
          .a = matrix_batch(a),
          .b = matrix_batch(b),
          .out = torch::stable::new_empty(a, {a.size(0), a.size(1), b.size(2)})};
}

}  // namespace fastseq::torch_ops
