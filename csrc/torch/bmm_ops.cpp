// fastseq::bmm on the CPU.
#include "torch/bmm_args.h"

#include <torch/csrc/stable/library.h>

namespace fastseq::torch_ops {

namespace {

Tensor bmm_cpu(const Tensor& a, const Tensor& b) {
  const BmmArgs args = bmm_args(a, b);
  bmm(args.shape, args.dtype, args.a, args.b, args.out.mutable_data_ptr(), torch_parallel_for);
  return args.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CPU, m) { m.impl("bmm", TORCH_BOX(&bmm_cpu)); }

}  // namespace fastseq::torch_ops
