// Products of small integers, which are exact, beside those on the CPU.
#include "cuda/bmm_kernels.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
#include "device_buffer.h"

namespace fastseq {

namespace {

using cuda::Stream;
using testing::DeviceBuffer;
using testing::same_bits;

template <class T>
std::vector<T> integers(std::int64_t count, std::int64_t seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = T(static_cast<float>((static_cast<std::int64_t>(i) * 7 + seed) % 9 - 4));
  }
  return values;
}

// How operands lie in memory.
enum class Lies { kByRows, kByColumns, kByRowsWithGaps, kByColumnsWithGaps };

MatrixBatch matrices(std::int64_t rows, std::int64_t columns, Lies lies) {
  const std::int64_t gap = lies == Lies::kByRows || lies == Lies::kByColumns ? 0 : 2;
  if (lies == Lies::kByRows || lies == Lies::kByRowsWithGaps) {
    return {nullptr, rows * (columns + gap) + gap, columns + gap, 1};
  }
  return {nullptr, columns * (rows + gap) + gap, 1, rows + gap};
}

// An operand of the CPU beside the same on the device, where its address is no multiple of a vector's if `shift` is 1.
template <class T>
struct Operand {
  std::vector<T> values;
  DeviceBuffer<T> on_device;

  Operand(std::int64_t count, std::int64_t seed, std::size_t shift)
      : values(integers<T>(count, seed)), on_device(values, shift) {}
};

template <class T>
void check_equal(DType dtype, const BmmShape& s, MatrixBatch left, MatrixBatch right, std::size_t shift = 0) {
  const auto span = [&](const MatrixBatch& x, std::int64_t rows, std::int64_t columns) {  // elements from first to last
    if (s.batch == 0 || rows == 0 || columns == 0) return std::int64_t{0};
    return (s.batch - 1) * x.batch_stride + (rows - 1) * x.row_stride + (columns - 1) * x.column_stride + 1;
  };
  const Stream stream;
  const Operand<T> a(span(left, s.m, s.k), 0, shift);
  const Operand<T> b(span(right, s.k, s.n), 3, shift);
  std::vector<T> c(static_cast<std::size_t>(s.batch * s.m * s.n));
  const DeviceBuffer<T> c_device(c.size(), shift);
  left.data = a.values.data();
  right.data = b.values.data();
  bmm(s, dtype, left, right, c.data(), serial_for);
  left.data = a.on_device.data();
  right.data = b.on_device.data();
  cuda::bmm(s, dtype, left, right, c_device.data(), stream);
  CHECK(same_bits(c_device.read(stream), c));
}

template <class T>
void check_product(DType dtype, const BmmShape& s, Lies a, Lies b, std::size_t shift = 0) {
  check_equal<T>(dtype, s, matrices(s.m, s.k, a), matrices(s.k, s.n, b), shift);
}

template <class Check>
void for_all_types(Check&& check) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    dispatch(dtype, [&]<class T>(Type<T> type) { check(dtype, type); });
  }
}

}  // namespace

TEST(products_of_all_types_and_shapes) {
  const std::vector<BmmShape> shapes{{0, 2, 2, 2},   {3, 0, 2, 2},    {3, 2, 0, 2},   {3, 2, 2, 0},   {67, 1, 0, 1},
                                     {133, 4, 4, 4}, {9, 16, 16, 16}, {99, 1, 16, 1}, {65, 1, 16, 4}, {20, 16, 1, 2},
                                     {7, 3, 5, 7},   {2, 17, 40, 33}, {66, 1, 17, 1}};
  for (const BmmShape& shape : shapes) {
    for_all_types([&]<class T>(DType dtype, Type<T> /*type*/) {
      check_product<T>(dtype, shape, Lies::kByRows, Lies::kByColumns, 1);
      check_product<T>(dtype, shape, Lies::kByColumns, Lies::kByRowsWithGaps);
    });
    check_product<float>(DType::kFloat32, shape, Lies::kByRows, Lies::kByRows);
    check_product<float>(DType::kFloat32, shape, Lies::kByColumns, Lies::kByColumns, 1);
    check_product<float>(DType::kFloat32, shape, Lies::kByRowsWithGaps, Lies::kByColumnsWithGaps, 1);
    check_product<float>(DType::kFloat32, shape, Lies::kByColumnsWithGaps, Lies::kByRows);
  }
}

// Each k with a kernel of its own, the first one without, and the sides around those at which kernels change.
constexpr std::array<std::int64_t, 12> kSides{1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17};

TEST(squares_of_every_side) {
  for_all_types([]<class T>(DType dtype, Type<T> /*type*/) {
    for (const std::int64_t side : kSides) {
      const BmmShape shape{256 / (side * side) + 3, side, side, side};  // more than a block takes
      check_product<T>(dtype, shape, Lies::kByRows, Lies::kByColumns, static_cast<std::size_t>(side % 2));
    }
  });
}

TEST(products_of_every_inner_side) {
  for (const std::int64_t side : kSides) {
    check_product<float>(DType::kFloat32, {5, 2, side, 3}, Lies::kByRows, Lies::kByColumns);
    check_product<float>(DType::kFloat32, {5, side, side, side + 1}, Lies::kByRowsWithGaps, Lies::kByRows);
    check_product<float>(DType::kFloat32, {5, side + 1, side, 1}, Lies::kByColumns, Lies::kByColumnsWithGaps);
  }
}

// In 16 bits a sum of ones would stop at 2048, or at 256.
TEST(sums_of_16_bits_are_made_in_32) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    dispatch(dtype, [&]<class T>(Type<T> /*type*/) {
      for (const std::int64_t side : {1, 4, 17}) {
        constexpr std::int64_t kSum = 3000;
        const DeviceBuffer<T> ones(std::vector<T>(static_cast<std::size_t>(side * kSum), T(1.0F)));
        const auto outputs = static_cast<std::size_t>(side * side);
        const DeviceBuffer<T> c(outputs);
        const cuda::Stream stream;
        cuda::bmm({1, side, kSum, side}, dtype, {ones.data(), 0, kSum, 1}, {ones.data(), 0, side, 1}, c.data(), stream);
        CHECK(same_bits(c.read(stream), std::vector<T>(outputs, T(static_cast<float>(kSum)))));
      }
    });
  }
}

// A grid has at most 1 << 11 blocks for small products, and 1 << 10 for tiles of 16 rows and for the batch.
TEST(more_products_than_a_grid_has_blocks) {
  check_product<float>(DType::kFloat32, {(1 << 11) + 3, 9, 2, 15}, Lies::kByRows, Lies::kByRows);
  check_product<float>(DType::kFloat32, {(1 << 10) + 3, 1, 1, 17}, Lies::kByRows, Lies::kByRows);
  check_product<float>(DType::kFloat32, {1, (1 << 14) + 17, 1, 1}, Lies::kByRows, Lies::kByRows);
}

// A matrix, its rows or its columns, of zero strides, a batch of them, too; rows that overlap.
TEST(operands_that_use_elements_more_than_once) {
  for (const BmmShape& s : std::vector<BmmShape>{{40, 3, 5, 2}, {70, 4, 4, 4}, {3, 20, 5, 2}}) {
    check_equal<float>(DType::kFloat32, s, {nullptr, 0, s.k, 1}, {nullptr, 0, 0, 1});
    check_equal<float>(DType::kFloat32, s, {nullptr, s.m * s.k, s.k, 1}, {nullptr, 0, s.n, 1});
    check_equal<float>(DType::kFloat32, s, {nullptr, 0, 1, 0}, {nullptr, s.k * s.n, 1, s.k});
    check_equal<float>(DType::kFloat32, s, {nullptr, s.m * s.k, 1, 1}, {nullptr, s.k * s.n, s.n, 0});
  }
}

// Strides of one matrix, row or column may be anything.
TEST(strides_without_meaning) {
  check_equal<float>(DType::kFloat32, {1, 3, 4, 5}, {nullptr, 7, 4, 1}, {nullptr, 0, 5, 1});
  check_equal<float>(DType::kFloat32, {50, 1, 4, 1}, {nullptr, 4, 0, 1}, {nullptr, 4, 1, 9});
  check_equal<float>(DType::kFloat32, {50, 4, 1, 4}, {nullptr, 4, 1, 0}, {nullptr, 4, 0, 1});
}

}  // namespace fastseq
