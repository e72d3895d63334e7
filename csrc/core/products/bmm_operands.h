// Shared by the sources of bmm: its kernels for fp32 and fp64 are slow to compile, so each has its own source.
#pragma once

#include <array>
#include <cstdint>

#include "core/base/dispatch.h"
#include "core/products/bmm.h"

namespace fastseq::products {

template <class T>
struct Operand {
  const T* data;
  std::int64_t batch;
  std::int64_t row;
  std::int64_t column;

  explicit Operand(const MatrixBatch& m)
      : data(static_cast<const T*>(m.data)), batch(m.batch_stride), row(m.row_stride), column(m.column_stride) {}
};

// One row of c: out[j] = sum over q of a[q] b[q][j], for N columns; b's rows are contiguous.
// K > 0 fixes the length of the sum at compile time.
template <int N, int K, class T>
inline void row_product(const T* a, std::int64_t a_step, const T* b, std::int64_t b_row, std::int64_t k, T* out) {
  using Acc = Accumulate<T>;
  std::array<Acc, N> sums{};
  const std::int64_t terms = K > 0 ? K : k;
  for (std::int64_t q = 0; q < terms; ++q) {
    const auto factor = static_cast<Acc>(a[q * a_step]);
    for (int j = 0; j < N; ++j) sums[j] += factor * static_cast<Acc>(b[q * b_row + j]);
  }
  for (int j = 0; j < N; ++j) out[j] = T(sums[j]);
}

// c's columns from `first` on, for the matrices [begin, end) of the batch; for fp32 and fp64.
template <class T>
void all_columns(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, std::int64_t first, T* c,
                 std::int64_t begin, std::int64_t end);
extern template void all_columns(const BmmShape&, const Operand<float>&, const Operand<float>&, std::int64_t, float*,
                                 std::int64_t, std::int64_t);
extern template void all_columns(const BmmShape&, const Operand<double>&, const Operand<double>&, std::int64_t, double*,
                                 std::int64_t, std::int64_t);

}  // namespace fastseq::products
