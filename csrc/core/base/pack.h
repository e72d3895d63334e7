// Gathers many tensors into one flat buffer and scatters it back, with scaling: the CPU side of net2grad.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/base/flat_layout.h"
#include "core/base/parallel.h"

namespace fastseq {

// flat[offset_i + j] = scale * tensors[i][j]; gaps between tensors become zero.
// Every tensor is contiguous, with numels[i] elements of `dtype`; `flat` has layout.numel elements; nothing overlaps.
void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, const FlatLayout& layout,
          DType dtype, double scale, void* flat, ParallelFor parallel_for);

// tensors[i][j] = scale * flat[offset_i + j].
void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, ParallelFor parallel_for);

}  // namespace fastseq
