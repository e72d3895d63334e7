// fastseq::random_kernels on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/convolution/random_kernels.h"
#include "torch/tensors.h"

namespace fastseq::torch_ops {

namespace {

Tensor random_kernels_cpu(const Tensor& x, const std::optional<Tensor>& lengths, const Tensor& members,
                          const std::vector<std::int64_t>& dilations, const Tensor& thresholds,
                          std::int64_t least_steps) {
  STD_TORCH_CHECK(x.dim() == 3, "random_kernels: x must be (time, sequences, features), got ", x.dim(), " dimensions");
  const DType dtype = to_dtype(x.scalar_type());
  STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, "random_kernels: x must be float32 or float64");
  const std::int64_t steps = x.size(0);
  const std::int64_t sequences = x.size(1);
  const std::int64_t features = x.size(2);
  const auto groups = static_cast<std::int64_t>(dilations.size());
  STD_TORCH_CHECK(least_steps >= 1, "random_kernels: least_steps must be at least 1, got ", least_steps);
  // Kernels that reach further would see only zeros, and memory grows with their reach.
  STD_TORCH_CHECK(std::ranges::all_of(dilations, [](std::int64_t d) { return d >= 1 && d <= (1 << 24); }),
                  "random_kernels: dilations must be between 1 and 2**24");
  STD_TORCH_CHECK(members.scalar_type() == ScalarType::Long && members.dim() == 2 && members.size(0) == groups,
                  "random_kernels: members must be (groups, M) int64 for ", groups, " dilations");
  STD_TORCH_CHECK(thresholds.scalar_type() == x.scalar_type() && thresholds.dim() == 2 &&
                      thresholds.size(0) == groups && thresholds.size(1) == kKernelChoices,
                  "random_kernels: thresholds must be (", groups, ", ", kKernelChoices, ") of the dtype of x");
  const bool ends = lengths.has_value();
  if (ends) {
    STD_TORCH_CHECK(lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 && lengths->size(0) == sequences,
                    "random_kernels: lengths must be ", sequences, " int64 numbers");
  }
  const Tensor read = features <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
  const Tensor chosen = torch::stable::contiguous(members);
  const Tensor limits = torch::stable::contiguous(thresholds);
  const Tensor counts = ends ? torch::stable::contiguous(*lengths) : members;
  const auto* length = ends ? static_cast<const std::int64_t*>(counts.const_data_ptr()) : nullptr;
  STD_TORCH_CHECK(!ends || std::all_of(length, length + sequences,
                                       [&](std::int64_t count) { return count >= 0 && count <= steps; }),
                  "random_kernels: lengths must be between 0 and ", steps, ", the number of steps");
  const auto* member = static_cast<const std::int64_t*>(chosen.const_data_ptr());
  STD_TORCH_CHECK(std::all_of(member, member + chosen.numel(), [&](std::int64_t f) { return f >= 0 && f <= features; }),
                  "random_kernels: members must be between 0 and ", features,
                  ", the number of features, which stands for none");
  Tensor out = torch::stable::new_empty(x, {sequences, groups * kKernelChoices});
  random_kernels({.dtype = dtype,
                  .steps = steps,
                  .sequences = sequences,
                  .features = features,
                  .groups = groups,
                  .members = members.size(1),
                  .least_steps = least_steps},
                 {.x = read.const_data_ptr(),
                  .x_step = read.stride(0),
                  .x_sequence = read.stride(1),
                  .lengths = length,
                  .dilations = dilations.data(),
                  .members = member,
                  .thresholds = limits.const_data_ptr()},
                 out.mutable_data_ptr(), torch_parallel_for);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastseq, CPU, m) { m.impl("random_kernels", TORCH_BOX(&random_kernels_cpu)); }

}  // namespace fastseq::torch_ops
