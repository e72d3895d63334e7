// fastseq::pack and fastseq::unpack on the CPU.
#include "core/pack.h"

#include <torch/csrc/stable/library.h>

#include "torch/tensors.h"

namespace fastseq::torch_ops {

namespace {

Tensor pack_cpu(const std::vector<Tensor>& tensors, std::int64_t alignment, double scale) {
  const TensorList list = tensor_list("pack", tensors);
  const FlatLayout layout = flat_layout(list.numels, list.dtype, alignment);
  Tensor flat = torch::stable::new_empty(tensors[0], {layout.numel});
  pack(list.pointers, list.numels, layout, list.dtype, scale, flat.mutable_data_ptr(), torch_parallel_for);
  return flat;
}

std::vector<Tensor> unpack_cpu(const Tensor& flat, const std::vector<std::int64_t>& numels, std::int64_t alignment,
                               double scale) {
  const DType dtype = to_dtype(flat.scalar_type());
  const FlatLayout layout = flat_layout(numels, dtype, alignment);
  STD_TORCH_CHECK(flat.dim() == 1 && flat.numel() == layout.numel, "unpack: flat must be a vector of length ",
                  layout.numel, " for these tensors, got ", flat.numel(), " elements");
  const Tensor source = flat.is_contiguous() ? flat : torch::stable::contiguous(flat);
  NewTensors result = new_tensors(flat, numels);
  unpack(source.const_data_ptr(), numels, layout, dtype, scale, result.pointers, torch_parallel_for);
  return result.tensors;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack_cpu));
  m.impl("unpack", TORCH_BOX(&unpack_cpu));
}

}  // namespace fastseq::torch_ops
