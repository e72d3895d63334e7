// core/base/pack.h on a GPU: the same arithmetic, on device pointers, in the order of a stream. Nothing is
// synchronised; tensors and buffers must live until the stream is done with them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/base/flat_layout.h"

namespace fastseq::cuda {

// Where the facts of pack go: facts[0] becomes 1 if all results are finite, else 0; facts[1] the sum of their squares,
// added in a fixed order. Null: they are not wanted.
struct FactsOut {
  double* facts = nullptr;
  double* scratch = nullptr;  // facts_scratch doubles
};

// Number of doubles of scratch memory for the facts: two for each chunk.
std::int64_t facts_scratch(std::span<const std::int64_t> numels, const FlatLayout& layout);

void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from_dtype,
          const FlatLayout& layout, DType to_dtype, double scale, void* flat, FactsOut out, cudaStream_t stream);

void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, cudaStream_t stream);

}  // namespace fastseq::cuda
