// Batched products of small matrices, where a library's call per matrix costs more than its arithmetic.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/parallel.h"

namespace fastseq {

// A batch of matrices in memory. Strides are in elements and may be anything, 0 (broadcast) included.
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
// Sums run over k in order in fp32 (fp64 for fp64), in 16 partial sums where a product is a plain dot product.
void bmm(const BmmShape& shape, DType dtype, const MatrixBatch& a, const MatrixBatch& b, void* c,
         ParallelFor parallel_for);

}  // namespace fastseq
