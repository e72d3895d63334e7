// The packer: copies that scale, cast and look at the values in one pass; many tensors into one flat buffer, and back.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/base/flat_layout.h"
#include "core/base/parallel.h"

namespace fastseq {

// What is known of values that were looked at. Squares are added in fp64 and in a fixed order: the same bits for every
// number of threads and every instruction set.
struct PackedFacts {
  bool finite = true;  // no infinity and no NaN
  double sum_of_squares = 0;

  void add(const PackedFacts& others) {
    finite &= others.finite;
    sum_of_squares += others.sum_of_squares;
  }
};

PackedFacts facts_of(const void* values, std::int64_t numel, DType dtype);

// to[i] = scale * from[i], computed in fp32 unless both types are fp64; a scale of 1 between equal types copies the
// bits. The facts are those of the result. If `to` is `from`, their types are equal, and with a scale of 1 nothing is
// written; otherwise the two must not overlap.
PackedFacts scaled_copy(const void* from, DType from_dtype, std::int64_t numel, double scale, void* to, DType to_dtype);

// Many tensors: tensors[i] is contiguous, with numels[i] elements; nothing overlaps.

PackedFacts facts_of(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType dtype,
                     ParallelFor parallel_for);

// flat[offset_i + j] = scale * tensors[i][j]; gaps become zero. `layout` is for `to_dtype`.
PackedFacts pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from_dtype,
                 const FlatLayout& layout, DType to_dtype, double scale, void* flat, ParallelFor parallel_for);

// tensors[i][j] = scale * flat[offset_i + j].
void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, ParallelFor parallel_for);

}  // namespace fastseq
