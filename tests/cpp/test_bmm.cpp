#include "core/products/bmm.h"

#include <cstdint>
#include <vector>

#include "check.h"
#include "core/base/half.h"
#include "ranges.h"

namespace fastseq {

namespace {

enum class Order : std::uint8_t { kRows, kColumns, kSpread, kShared };

// A batch of small integers, exact in every dtype, in memory in the given order.
template <class T>
struct Operand {
  std::vector<T> memory;
  MatrixBatch view{};

  Operand(std::int64_t batch, std::int64_t rows, std::int64_t columns, Order order, int seed) {
    const std::int64_t size = rows * columns;
    switch (order) {
      case Order::kRows:
        view = {nullptr, size, columns, 1};
        break;
      case Order::kColumns:
        view = {nullptr, size, 1, rows};
        break;
      case Order::kSpread:
        view = {nullptr, 6 * size + 5, 3 * columns, 2};
        break;
      case Order::kShared:  // one matrix for the whole batch
        view = {nullptr, 0, columns, 1};
        break;
    }
    memory.resize(static_cast<std::size_t>(batch * (6 * size + 5) + 1));
    for (std::size_t i = 0; i < memory.size(); ++i) {
      memory[i] = T(static_cast<float>((i * 7 + static_cast<std::size_t>(seed)) % 9) - 4.0F);
    }
    view.data = memory.data();
  }

  double at(std::int64_t i, std::int64_t r, std::int64_t q) const {
    const T value =
        memory[static_cast<std::size_t>(i * view.batch_stride + r * view.row_stride + q * view.column_stride)];
    return static_cast<double>(static_cast<float>(value));
  }
};

template <class T>
void check_bmm(DType dtype, const BmmShape& s, Order a_order, Order b_order, ParallelFor parallel_for) {
  const Operand<T> a(s.batch, s.m, s.k, a_order, 1);
  const Operand<T> b(s.batch, s.k, s.n, b_order, 5);
  const auto size = static_cast<std::size_t>(s.batch * s.m * s.n);
  std::vector<T> c(size + 1, T(99.0F));
  bmm(s, dtype, a.view, b.view, c.data(), parallel_for);
  bool same = true;
  for (std::int64_t i = 0; i < s.batch; ++i) {
    for (std::int64_t r = 0; r < s.m; ++r) {
      for (std::int64_t q = 0; q < s.n; ++q) {
        double sum = 0;
        for (std::int64_t z = 0; z < s.k; ++z) sum += a.at(i, r, z) * b.at(i, z, q);
        const T expected = T(static_cast<float>(sum));
        same = same &&
               static_cast<float>(c[static_cast<std::size_t>((i * s.m + r) * s.n + q)]) == static_cast<float>(expected);
      }
    }
  }
  if (!same) {
    std::fprintf(stderr, "batch %ld, %ld x %ld x %ld, orders %d and %d\n", static_cast<long>(s.batch),
                 static_cast<long>(s.m), static_cast<long>(s.k), static_cast<long>(s.n), static_cast<int>(a_order),
                 static_cast<int>(b_order));
  }
  CHECK(same);
  CHECK_EQ(static_cast<float>(c[size]), 99.0F);  // nothing after c was written
}

template <class T>
void check_dtype(DType dtype) {
  const std::vector<BmmShape> shapes = {{0, 3, 3, 3},  {3, 0, 2, 2},   {3, 2, 0, 2},  {3, 2, 2, 0},   {5, 1, 1, 1},
                                        {9, 4, 4, 4},  {9, 8, 8, 8},   {4, 7, 5, 3},  {4, 1, 33, 32}, {4, 32, 33, 1},
                                        {3, 1, 50, 1}, {3, 2, 9, 16},  {3, 2, 9, 17}, {3, 4, 4, 20},  {5, 2, 2, 2},
                                        {5, 3, 3, 3},  {2, 19, 21, 40}};
  for (const BmmShape& shape : shapes) {
    for (const Order a : {Order::kRows, Order::kColumns, Order::kSpread, Order::kShared}) {
      for (const Order b : {Order::kRows, Order::kColumns, Order::kSpread, Order::kShared}) {
        for (const ParallelFor parallel_for : testing::parallel_fors()) check_bmm<T>(dtype, shape, a, b, parallel_for);
      }
    }
  }
}

}  // namespace

TEST(multiplies_float16) { check_dtype<Float16>(DType::kFloat16); }
TEST(multiplies_bfloat16) { check_dtype<BFloat16>(DType::kBFloat16); }
TEST(multiplies_float32) { check_dtype<float>(DType::kFloat32); }
TEST(multiplies_float64) { check_dtype<double>(DType::kFloat64); }

}  // namespace fastseq
