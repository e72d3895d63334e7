// fastseq::pack, unpack and sum_of_squares on the CPU.
#include "core/base/pack.h"

#include <torch/csrc/stable/library.h>

#include "torch/pack_args.h"

namespace fastseq::torch_ops {

namespace {

Tensor pack_cpu(const std::vector<Tensor>& tensors, std::int64_t alignment, double scale) {
  const PackArgs args = pack_args(tensors, alignment);
  pack(args.list.pointers, args.list.numels, args.list.dtype, args.layout, args.list.dtype, scale,
       args.flat.mutable_data_ptr(), torch_parallel_for);
  return args.flat;
}

void pack_checked_cpu(const Tensor& flat, const Tensor& facts, const std::vector<Tensor>& tensors,
                      std::int64_t alignment, double scale) {
  const PackCheckedArgs args = pack_checked_args(flat, facts, tensors, alignment);
  const PackedFacts found = pack(args.list.pointers, args.list.numels, args.list.dtype, args.layout, args.to, scale,
                                 flat.mutable_data_ptr(), torch_parallel_for);
  auto* out = static_cast<double*>(facts.mutable_data_ptr());
  out[0] = found.finite ? 1.0 : 0.0;
  out[1] = found.sum_of_squares;
}

double sum_of_squares_cpu(const std::vector<Tensor>& tensors) {
  const TensorList list = tensor_list("sum_of_squares", tensors);
  return facts_of(list.pointers, list.numels, list.dtype, torch_parallel_for).sum_of_squares;
}

std::vector<Tensor> unpack_cpu(const Tensor& flat, const std::vector<std::int64_t>& numels, std::int64_t alignment,
                               double scale) {
  const UnpackArgs args = unpack_args(flat, numels, alignment);
  unpack(args.flat.const_data_ptr(), numels, args.layout, args.dtype, scale, args.pointers, torch_parallel_for);
  return args.tensors;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack_cpu));
  m.impl("pack_checked_", TORCH_BOX(&pack_checked_cpu));
  m.impl("sum_of_squares", TORCH_BOX(&sum_of_squares_cpu));
  m.impl("unpack", TORCH_BOX(&unpack_cpu));
}

}  // namespace fastseq::torch_ops
