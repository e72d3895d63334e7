// The checks and buffers of fastseq::pack and fastseq::unpack, shared by their CPU and CUDA implementations.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/flat_layout.h"
#include "torch/tensors.h"

namespace fastseq::torch_ops {

struct PackArgs {
  TensorList list;
  FlatLayout layout;
  Tensor flat;  // not yet filled
};

inline PackArgs pack_args(const std::vector<Tensor>& tensors, std::int64_t alignment) {
  TensorList list = tensor_list("pack", tensors);
  FlatLayout layout = flat_layout(list.numels, list.dtype, alignment);
  Tensor flat = torch::stable::new_empty(tensors[0], {layout.numel});
  return {.list = std::move(list), .layout = std::move(layout), .flat = std::move(flat)};
}

// The same for fastseq::pack_checked_, into `flat`, whose dtype may differ; `facts` gets (finite, sum of squares).
struct PackCheckedArgs {
  TensorList list;
  DType to;
  FlatLayout layout;
};

inline PackCheckedArgs pack_checked_args(const Tensor& flat, const Tensor& facts, const std::vector<Tensor>& tensors,
                                         std::int64_t alignment) {
  TensorList list = tensor_list("pack_checked_", tensors);
  const DType to = to_dtype(flat.scalar_type());
  FlatLayout layout = flat_layout(list.numels, to, alignment);
  STD_TORCH_CHECK(
      flat.dim() == 1 && flat.is_contiguous() && flat.numel() == layout.numel && flat.device() == tensors[0].device(),
      "pack_checked_: flat must be a contiguous vector of length ", layout.numel, " on the tensors' device, got ",
      flat.numel(), " elements");
  STD_TORCH_CHECK(facts.scalar_type() == ScalarType::Double && facts.numel() == 2 && facts.is_contiguous() &&
                      facts.device() == flat.device(),
                  "pack_checked_: facts must be two float64 on the tensors' device");
  return {.list = std::move(list), .to = to, .layout = std::move(layout)};
}

struct UnpackArgs {
  Tensor flat;  // contiguous
  DType dtype;
  FlatLayout layout;
  std::vector<Tensor> tensors;  // not yet filled
  std::vector<void*> pointers;
};

inline UnpackArgs unpack_args(const Tensor& flat, const std::vector<std::int64_t>& numels, std::int64_t alignment) {
  const DType dtype = to_dtype(flat.scalar_type());
  FlatLayout layout = flat_layout(numels, dtype, alignment);
  STD_TORCH_CHECK(flat.dim() == 1 && flat.numel() == layout.numel, "unpack: flat must be a vector of length ",
                  layout.numel, " for these tensors, got ", flat.numel(), " elements");
  UnpackArgs args{.flat = flat.is_contiguous() ? flat : torch::stable::contiguous(flat),
                  .dtype = dtype,
                  .layout = std::move(layout),
                  .tensors = {},
                  .pointers = {}};
  for (const std::int64_t numel : numels) {
    args.tensors.push_back(torch::stable::new_empty(flat, {numel}));
    args.pointers.push_back(args.tensors.back().mutable_data_ptr());
  }
  return args;
}

}  // namespace fastseq::torch_ops
