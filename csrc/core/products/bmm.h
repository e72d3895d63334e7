// Batched products of small matrices, for which a library call per matrix costs more than the arithmetic.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/parallel.h"

namespace fastseq {

// A batch of matrices in memory. Strides are in elements and arbitrary, including 0 (broadcast).
struct MatrixBatch {
  const void* data;
  std::int64_t batch_stride;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

struct BmmShape {
  std::int64_t batch;
  std::int64_t m;
  std::int64_t k;
  std::int64_t n;
};

// c[i] = a[i] b[i] for i < batch: a[i] is (m, k), b[i] is (k, n), c is (batch, m, n), contiguous, and overlaps neither.
// Sums run over k in order in fp32 (fp64 for fp64); plain dot products use 16 partial sums.
void bmm(const BmmShape& shape, DType dtype, const MatrixBatch& a, const MatrixBatch& b, void* c,
         ParallelFor parallel_for);

}  // namespace fastseq
