// Products of small integers, which are exact, beside those on the CPU.
#include "cuda/bmm_kernels.h"

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

template <class T>
void check_product(DType dtype, const BmmShape& s, bool transposed) {
  const Stream stream;
  const std::vector<T> a = integers<T>(s.batch * s.m * s.k, 0);
  const std::vector<T> b = integers<T>(s.batch * s.k * s.n, 3);
  std::vector<T> c(static_cast<std::size_t>(s.batch * s.m * s.n));
  MatrixBatch left{a.data(), s.m * s.k, transposed ? 1 : s.k, transposed ? s.m : 1};
  MatrixBatch right{b.data(), s.k * s.n, transposed ? 1 : s.n, transposed ? s.k : 1};
  bmm(s, dtype, left, right, c.data(), serial_for);
  const DeviceBuffer<T> a_device(a);
  const DeviceBuffer<T> b_device(b);
  const DeviceBuffer<T> c_device(c.size());
  left.data = a_device.data();
  right.data = b_device.data();
  cuda::bmm(s, dtype, left, right, c_device.data(), stream);
  CHECK(same_bits(c_device.read(stream), c));
}

}  // namespace

TEST(products_of_all_types_and_shapes) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    dispatch(dtype, [&]<class T>(Type<T>) {
      for (const BmmShape& shape : std::vector<BmmShape>{{3, 0, 2, 2},
                                                         {3, 2, 0, 2},
                                                         {1, 1, 1, 1},
                                                         {133, 4, 4, 4},
                                                         {9, 16, 16, 16},
                                                         {99, 1, 16, 1},
                                                         {7, 3, 5, 7},
                                                         {2, 17, 40, 33},
                                                         {66, 1, 17, 1}}) {
        for (const bool transposed : {false, true}) check_product<T>(dtype, shape, transposed);
      }
    });
  }
}

TEST(more_products_than_a_grid_has_blocks) {
  check_product<float>(DType::kFloat32, {(1 << 12) + 100, 16, 2, 16}, false);
}

// A matrix, or its rows, of zero strides; a batch of them, too.
TEST(broadcast_operands) {
  const Stream stream;
  const BmmShape s{40, 3, 5, 2};
  const std::vector<float> a = integers<float>(s.m * s.k, 1);
  const std::vector<float> b = integers<float>(s.n, 2);
  std::vector<float> c(static_cast<std::size_t>(s.batch * s.m * s.n));
  bmm(s, DType::kFloat32, {a.data(), 0, s.k, 1}, {b.data(), 0, 0, 1}, c.data(), serial_for);
  const DeviceBuffer<float> a_device(a);
  const DeviceBuffer<float> b_device(b);
  const DeviceBuffer<float> c_device(c.size());
  cuda::bmm(s, DType::kFloat32, {a_device.data(), 0, s.k, 1}, {b_device.data(), 0, 0, 1}, c_device.data(), stream);
  CHECK(same_bits(c_device.read(stream), c));
}

}  // namespace fastseq
