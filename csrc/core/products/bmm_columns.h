// Kernels of all_columns, for one type: see bmm_operands.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/isa.h"
#include "core/products/bmm_operands.h"

namespace fastseq::products {

constexpr int kMaxColumns = 16;  // columns of c kept in registers in one pass

// c (m, N) = a b, for contiguous rows of b; c's rows are c_row apart.
template <int N, int K, class T>
inline void panel_product(const BmmShape& s, const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                          std::int64_t b_row, T* c, std::int64_t c_row) {
  for (std::int64_t i = 0; i < s.m; ++i) {
    row_product<N, K>(a + i * a_row, a_column, b, b_row, s.k, c + i * c_row);
  }
}

// b's columns [first, first + N), copied so that rows are contiguous.
template <int N, class T>
inline void copy_panel(const T* b, std::int64_t b_row, std::int64_t b_column, std::int64_t k, T* panel) {
  for (std::int64_t q = 0; q < k; ++q) {
    for (int j = 0; j < N; ++j) panel[q * N + j] = b[q * b_row + j * b_column];
  }
}

constexpr int kTiny = 4;  // square matrices up to this size take a few vector instructions, if all strides are known

// Square contiguous matrices, either of them perhaps transposed.
template <int N, bool kATransposed, bool kBTransposed, class T>
inline void tiny_products(const Operand<T>& a, const Operand<T>& b, T* c, std::int64_t begin, std::int64_t end) {
  using Acc = Accumulate<T>;
  for (std::int64_t i = begin; i < end; ++i) {
    const T* left = a.data + i * a.batch;
    std::array<Acc, N * N> right{};
    for (int q = 0; q < N; ++q) {
      for (int j = 0; j < N; ++j) {
        right[q * N + j] = static_cast<Acc>(b.data[i * b.batch + (kBTransposed ? j * N + q : q * N + j)]);
      }
    }
    for (int r = 0; r < N; ++r) {
      std::array<Acc, N> sums{};
      for (int q = 0; q < N; ++q) {
        const auto factor = static_cast<Acc>(left[kATransposed ? q * N + r : r * N + q]);
        for (int j = 0; j < N; ++j) sums[j] += factor * right[q * N + j];
      }
      for (int j = 0; j < N; ++j) c[(i * N + r) * N + j] = T(sums[j]);
    }
  }
}

// Returns whether a and b are such matrices, and so the product was computed.
template <int N, class T>
inline bool try_tiny(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, T* c, std::int64_t begin,
                     std::int64_t end) {
  const auto rows = [](const Operand<T>& x) { return x.row == N && x.column == 1; };
  const auto columns = [](const Operand<T>& x) { return x.row == 1 && x.column == N; };
  if (s.m != N || s.n != N) return false;
  if (rows(a) && rows(b)) {
    tiny_products<N, false, false>(a, b, c, begin, end);
  } else if (rows(a) && columns(b)) {
    tiny_products<N, false, true>(a, b, c, begin, end);
  } else if (columns(a) && rows(b)) {
    tiny_products<N, true, false>(a, b, c, begin, end);
  } else if (columns(a) && columns(b)) {
    tiny_products<N, true, true>(a, b, c, begin, end);
  } else {
    return false;
  }
  return true;
}

// N columns of c, for the matrices [begin, end) of the batch, starting at column `first`.
template <int N, int K, class T>
inline void columns_product(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, std::int64_t first, T* c,
                            std::int64_t begin, std::int64_t end) {
  if constexpr (K > 0 && K <= kTiny) {
    if (try_tiny<K>(s, a, b, c, begin, end)) return;
  }
  if (b.column == 1) {
    for (std::int64_t i = begin; i < end; ++i) {
      panel_product<N, K>(s, a.data + i * a.batch, a.row, a.column, b.data + i * b.batch + first, b.row,
                          c + i * s.m * s.n + first, s.n);
    }
    return;
  }
  std::vector<T> panel(static_cast<std::size_t>(s.k * N));
  for (std::int64_t i = begin; i < end; ++i) {
    copy_panel<N>(b.data + i * b.batch + first * b.column, b.row, b.column, K > 0 ? K : s.k, panel.data());
    panel_product<N, K>(s, a.data + i * a.batch, a.row, a.column, panel.data(), N, c + i * s.m * s.n + first, s.n);
  }
}

template <int N, int K, class T>
void columns_kernel(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, std::int64_t first, T* c,
                    std::int64_t begin, std::int64_t end) {
  columns_product<N, K>(s, a, b, first, c, begin, end);
}

template <class T>
using ColumnsKernel = void (*)(const BmmShape&, const Operand<T>&, const Operand<T>&, std::int64_t, T*, std::int64_t,
                               std::int64_t);

// Kernels for 1 to kMaxColumns columns; those for square matrices up to 8 also have a fixed k.
template <class T, std::size_t... I>
ColumnsKernel<T> pick_columns_kernel(std::int64_t columns, std::int64_t k, std::index_sequence<I...> /*columns*/) {
  static constexpr std::array<ColumnsKernel<T>, sizeof...(I)> kAnyK{best<columns_kernel<I + 1, 0, T>>...};
  static constexpr std::array<ColumnsKernel<T>, sizeof...(I)> kSquare{
      best<columns_kernel<I + 1, (I < 8 ? I + 1 : 0), T>>...};
  const auto index = static_cast<std::size_t>(columns - 1);
  return columns == k ? kSquare[index] : kAnyK[index];
}

template <class T>
void all_columns(const BmmShape& s, const Operand<T>& a, const Operand<T>& b, std::int64_t first, T* c,
                 std::int64_t begin, std::int64_t end) {
  for (; first < s.n; first += kMaxColumns) {
    const std::int64_t columns = std::min<std::int64_t>(kMaxColumns, s.n - first);
    pick_columns_kernel<T>(columns, s.k, std::make_index_sequence<kMaxColumns>{})(s, a, b, first, c, begin, end);
  }
}

}  // namespace fastseq::products
