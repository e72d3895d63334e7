// Shared by all operators: dtypes, threads, and checks whose messages start with the operator's name.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/parallel.h"

namespace fastseq::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "fastseq: tensors must be float16, bfloat16, float32 or float64");
  }
}

// torch's intra-op threads, as core's ParallelFor.
inline void torch_parallel_for(std::int64_t count, std::int64_t grain, RangeBody body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](std::int64_t begin, std::int64_t end) { body(begin, end, context); });
}

// A list of tensors of one dtype and device, as arrays of pointers and lengths.
struct TensorList {
  std::vector<Tensor> copies;  // contiguous copies of tensors that are not contiguous; kept alive here
  std::vector<const void*> pointers;
  std::vector<std::int64_t> numels;
  DType dtype;
};

inline TensorList tensor_list(const char* op, const std::vector<Tensor>& tensors) {
  STD_TORCH_CHECK(!tensors.empty(), op, ": tensors must not be empty");
  const ScalarType type = tensors[0].scalar_type();
  const auto device = tensors[0].device();
  TensorList list{.copies = {}, .pointers = {}, .numels = {}, .dtype = to_dtype(type)};
  list.pointers.reserve(tensors.size());
  list.numels.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.scalar_type() == type && tensor.device() == device, op,
                    ": all tensors must have the dtype and the device of the first");
    if (!tensor.is_contiguous()) list.copies.push_back(torch::stable::contiguous(tensor));
    list.pointers.push_back((tensor.is_contiguous() ? tensor : list.copies.back()).const_data_ptr());
    list.numels.push_back(tensor.numel());
  }
  return list;
}

}  // namespace fastseq::torch_ops
