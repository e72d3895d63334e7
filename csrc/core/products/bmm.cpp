#include "core/products/bmm.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/isa.h"
#include "core/products/bmm_operands.h"

namespace fastseq {

namespace {

using namespace products;

// Least multiplications worth waking a thread for.
constexpr std::int64_t kGrain = 64 * 1024;
constexpr int kLanes = 8;                  // partial sums of a dot product
constexpr std::int64_t kBlock = 8 * 1024;  // elements of copies that stay in the first-level cache

// sums[lane] += x[lane] y[lane], for N lanes
template <int N, class T, class Acc>
inline void add_products(const T* x, const T* y, std::array<Acc, N>& sums) {
  for (int lane = 0; lane < N; ++lane) sums[lane] += static_cast<Acc>(x[lane]) * static_cast<Acc>(y[lane]);
}

// sum over q of x[q] y[q], both contiguous.
template <class T>
inline Accumulate<T> dot(const T* x, const T* y, std::int64_t k) {
  using Acc = Accumulate<T>;
  Acc rest{};
  std::int64_t q = 0;
  if (k >= kLanes) {
    std::array<Acc, kLanes> sums{};
    for (; q + kLanes <= k; q += kLanes) add_products<kLanes>(x + q, y + q, sums);
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
    }
    rest = sums[0];
  }
  for (; q < k; ++q) rest += static_cast<Acc>(x[q]) * static_cast<Acc>(y[q]);
  return rest;
}

// n == 1, with the rows of a and the column of b contiguous.
template <class T>
void dots_kernel(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, std::int64_t begin,
                 std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    for (std::int64_t r = 0; r < s.m; ++r) {
      c[i * s.m + r] = T(dot(a.data + i * a.batch + r * a.row, b.data + i * b.batch, s.k));
    }
  }
}

// m == 1: a row times a matrix whose rows are contiguous, N columns at a time so that memory is read in order.
template <int N, class T>
void row_kernel(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, std::int64_t first, T* c,
                std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    row_product<N, 0>(a.data + i * a.batch, a.column, b.data + i * b.batch + first, b.row, s.k, c + i * s.n + first);
  }
}

// Copies lines of `numel` elements; those of `to` are contiguous, `to_line` elements apart.
template <class From, class To>
void convert_lines(const From* from, std::int64_t line, std::int64_t step, std::int64_t lines, std::int64_t numel,
                   To* to, std::int64_t to_line) {
  for (std::int64_t l = 0; l < lines; ++l, from += line, to += to_line) {
    if (step == 1) {
      for (std::int64_t i = 0; i < numel; ++i) to[i] = To(static_cast<float>(from[i]));
    } else {
      for (std::int64_t i = 0; i < numel; ++i) to[i] = To(static_cast<float>(from[i * step]));
    }
  }
}

// Converts `count` matrices to fp32, contiguous by rows; or by columns, if they were so and that is allowed.
template <class T>
Operand<float> widen(const Operand<T>& m, std::int64_t count, std::int64_t rows, std::int64_t columns, bool columns_too,
                     float* to) {
  const bool by_rows = m.column == 1 || m.row != 1 || !columns_too;
  const std::int64_t lines = by_rows ? rows : columns;
  const std::int64_t numel = by_rows ? columns : rows;
  const std::int64_t line = by_rows ? m.row : m.column;
  const std::int64_t step = by_rows ? m.column : m.row;
  const std::int64_t batch = m.batch == 0 ? 0 : lines * numel;
  if (m.batch == batch && step == 1 && line == numel) {
    best<convert_lines<T, float>>(m.data, 0, 1, 1, batch == 0 ? lines * numel : count * batch, to, 0);
  } else {
    for (std::int64_t i = 0; i < (batch == 0 ? 1 : count); ++i) {
      best<convert_lines<T, float>>(m.data + i * m.batch, line, step, lines, numel, to + i * batch, numel);
    }
  }
  return Operand<float>({to, batch, by_rows ? numel : 1, by_rows ? 1 : numel});
}

// The same for 16-bit elements, through fp32, a few matrices at a time so that they stay in the first-level cache.
template <class T>
void widened_columns(const BmmShape& s, Operand<T> a, Operand<T> b, std::int64_t first, T* c, std::int64_t begin,
                     std::int64_t end) {
  const BmmShape part{.batch = s.batch, .m = s.m, .k = s.k, .n = s.n - first};
  const std::int64_t numel = part.m * part.k + part.k * part.n + part.m * part.n;
  const std::int64_t block = std::clamp<std::int64_t>(kBlock / numel, 1, end - begin);
  std::vector<float> memory(static_cast<std::size_t>(block * numel));
  float* const right = memory.data() + block * part.m * part.k;
  float* const out = right + block * part.k * part.n;
  a.data += begin * a.batch;
  b.data += begin * b.batch + first * b.column;
  c += begin * s.m * s.n + first;
  for (std::int64_t rest = end - begin; rest > 0; rest -= block) {
    const std::int64_t count = std::min(block, rest);
    all_columns(part, widen(a, count, part.m, part.k, true, memory.data()),
                widen(b, count, part.k, part.n, false, right), 0, out, 0, count);
    const std::int64_t lines = first == 0 ? 1 : count * part.m;
    best<convert_lines<float, T>>(out, part.n, 1, lines, count * part.m * part.n / lines, c, s.n);
    a.data += count * a.batch;
    b.data += count * b.batch;
    c += count * s.m * s.n;
  }
}

template <class T>
void bmm_range(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, std::int64_t begin,
               std::int64_t end) {
  if (s.n == 1 && a.column == 1 && b.row == 1) {
    best<dots_kernel<T>>(s, a, b, c, begin, end);
    return;
  }
  std::int64_t first = 0;
  if (s.m == 1 && b.column == 1) {
    for (; first + 64 <= s.n; first += 64) best<row_kernel<64, T>>(s, a, b, first, c, begin, end);
    for (; first + 32 <= s.n; first += 32) best<row_kernel<32, T>>(s, a, b, first, c, begin, end);
  }
  if (first == s.n) return;
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    all_columns(s, a, b, first, c, begin, end);
  } else {
    widened_columns(s, a, b, first, c, begin, end);
  }
}

}  // namespace

void bmm(const BmmShape& shape, DType dtype, const MatrixBatch& a, const MatrixBatch& b, void* c,
         ParallelFor parallel_for) {
  BmmShape s = shape;
  if (s.batch == 0 || s.m == 0 || s.n == 0) return;
  MatrixBatch left = a;
  MatrixBatch right = b;
  // A row times a column-major matrix, and a column-major matrix times a column, are each other's transpose: c' = b'
  // a'. Both orders of c are the same memory.
  if ((s.m == 1 && b.column_stride != 1) || (s.n == 1 && a.column_stride != 1)) {
    left = {b.data, b.batch_stride, b.column_stride, b.row_stride};
    right = {a.data, a.batch_stride, a.column_stride, a.row_stride};
    std::swap(s.m, s.n);
  }
  dispatch(dtype, [&]<class T>(Type<T>) {
    const Operand<T> x(left);
    const Operand<T> y(right);
    auto* out = static_cast<T*>(c);
    auto body = [&](std::int64_t begin, std::int64_t end) { bmm_range(s, x, y, out, begin, end); };
    const std::int64_t products = std::max<std::int64_t>(s.m * s.k * s.n, 1);
    for_ranges(parallel_for, s.batch, std::max<std::int64_t>(kGrain / products, 1), body);
  });
}

}  // namespace fastseq
