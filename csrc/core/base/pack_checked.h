// pack, with a cast and a check of the values in the same pass.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/base/flat_layout.h"
#include "core/base/parallel.h"

namespace fastseq {

struct PackedFacts {
  bool finite;            // no infinity and no NaN in the result
  double sum_of_squares;  // of the result; summed in blocks of 4096 elements, so that it does not depend on threads
};

// flat[offset_i + j] = scale * tensors[i][j], as `to`; gaps become zero. Computed in fp32 unless both types are fp64.
// Tensors are contiguous, with numels[i] elements of `from`; `layout` is for `to`; nothing overlaps.
PackedFacts pack_checked(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from,
                         const FlatLayout& layout, DType to, double scale, void* flat, ParallelFor parallel_for);

}  // namespace fastseq
