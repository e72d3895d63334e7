// Sums over ranks on a GPU, beside the CPU's.
#include "cuda/exchanges/exchange_kernels.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
#include "core/ranks/weighted_sum.h"
#include "cuda/streams.h"
#include "device_buffer.h"

namespace fastseq {

namespace {

using testing::DeviceBuffer;
using testing::same_bits;

// From `ranks` vectors to as many others; every third has no weight, and NaN in it.
template <class T>
void check_sums(DType dtype, std::int64_t numel, int ranks) {
  const auto size = static_cast<std::size_t>(numel);
  const cuda::Stream stream;
  std::vector<std::vector<T>> values;
  std::vector<double> factors;
  for (int r = 0; r < ranks; ++r) {
    factors.push_back(r % 3 == 1 ? 0.0 : 0.125 + r);
    std::vector<T>& mine = values.emplace_back(size);
    for (std::size_t i = 0; i < size; ++i) {
      mine[i] = T(factors.back() == 0 ? std::numeric_limits<float>::quiet_NaN()
                                      : static_cast<float>((i * 13 + static_cast<std::size_t>(r) * 7) % 31) / 8 - 1);
    }
  }
  std::vector<const void*> sources;
  std::vector<std::unique_ptr<DeviceBuffer<T>>> from;
  std::vector<std::unique_ptr<DeviceBuffer<T>>> to;
  std::vector<const void*> device_sources;
  std::vector<void*> destinations;
  for (const std::vector<T>& mine : values) {
    sources.push_back(mine.data());
    device_sources.push_back(from.emplace_back(std::make_unique<DeviceBuffer<T>>(mine))->data());
    destinations.push_back(to.emplace_back(std::make_unique<DeviceBuffer<T>>(mine))->data());
  }
  std::vector<T> wanted(size);
  void* const host[] = {wanted.data()};
  const double squares = weighted_sum_and_squares(sources, factors, numel, dtype, host);
  const std::int64_t parts = cuda::squares_scratch(numel);
  const DeviceBuffer<double> sums(static_cast<std::size_t>(parts));
  cuda::weighted_sum(device_sources, factors, numel, dtype, destinations, sums.data(), stream);
  for (const auto& result : to) CHECK(same_bits(result->read(stream), wanted));
  double found = 0;
  for (const double part : sums.read(stream)) found += part;
  CHECK(found == squares || std::abs(found / squares - 1) < 1e-12);
}

}  // namespace

TEST(sums_have_the_bits_of_the_cpu_s) {
  for (const std::int64_t numel : {0, 1, 3, 8, 17, 4099, 9000}) {
    for (const int ranks : {1, 2, 3, 16}) {
      for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
        dispatch(dtype, [&]<class T>(Type<T>) { check_sums<T>(dtype, numel, ranks); });
      }
    }
  }
}

TEST(more_ranks_than_a_kernel_takes_are_refused) {
  const std::vector<const void*> sources(cuda::kMaxRanks + 1);
  const std::vector<double> factors(sources.size(), 1.0);
  CHECK_THROWS(cuda::weighted_sum(sources, factors, 1, DType::kFloat32, {}, nullptr, nullptr), std::invalid_argument);
}

}  // namespace fastseq
