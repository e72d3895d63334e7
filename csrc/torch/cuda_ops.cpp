// fastseq's operators on CUDA: on the tensors' device, in its current stream.
#include "torch/current_stream.h"

#include <torch/csrc/stable/library.h>

#include "cuda/bmm_kernels.h"
#include "cuda/pack_kernels.h"
#include "torch/bmm_args.h"
#include "torch/pack_args.h"

namespace fastseq::torch_ops {

namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor pack_cuda(const std::vector<Tensor>& tensors, std::int64_t alignment, double scale) {
  const PackArgs args = pack_args(tensors, alignment);
  const DeviceGuard guard(args.flat.get_device_index());
  cuda::pack(args.list.pointers, args.list.numels, args.list.dtype, args.layout, args.list.dtype, scale,
             args.flat.mutable_data_ptr(), {}, current_stream(args.flat));
  return args.flat;
}

void pack_checked_cuda(const Tensor& flat, const Tensor& facts, const std::vector<Tensor>& tensors,
                       std::int64_t alignment, double scale) {
  const PackCheckedArgs args = pack_checked_args(flat, facts, tensors, alignment);
  const DeviceGuard guard(flat.get_device_index());
  const Tensor scratch = torch::stable::new_empty(facts, {cuda::facts_scratch(args.list.numels, args.layout)});
  const cuda::FactsOut out{.facts = static_cast<double*>(facts.mutable_data_ptr()),
                           .scratch = static_cast<double*>(scratch.mutable_data_ptr())};
  cuda::pack(args.list.pointers, args.list.numels, args.list.dtype, args.layout, args.to, scale,
             flat.mutable_data_ptr(), out, current_stream(flat));
}

std::vector<Tensor> unpack_cuda(const Tensor& flat, const std::vector<std::int64_t>& numels, std::int64_t alignment,
                                double scale) {
  const UnpackArgs args = unpack_args(flat, numels, alignment);
  const DeviceGuard guard(flat.get_device_index());
  cuda::unpack(args.flat.const_data_ptr(), numels, args.layout, args.dtype, scale, args.pointers, current_stream(flat));
  return args.tensors;
}

Tensor bmm_cuda(const Tensor& a, const Tensor& b) {
  const BmmArgs args = bmm_args(a, b);
  const DeviceGuard guard(a.get_device_index());
  cuda::bmm(args.shape, args.dtype, args.a, args.b, args.out.mutable_data_ptr(), current_stream(a));
  return args.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CUDA, m) {
  m.impl("pack", TORCH_BOX(&pack_cuda));
  m.impl("pack_checked_", TORCH_BOX(&pack_checked_cuda));
  m.impl("unpack", TORCH_BOX(&unpack_cuda));
  m.impl("bmm", TORCH_BOX(&bmm_cuda));
}

}  // namespace fastseq::torch_ops
