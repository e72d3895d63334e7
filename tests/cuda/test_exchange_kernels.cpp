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

// Three ranks with 300 buckets each: the second does not count, the third has a gradient that is not finite.
TEST(ranks_conclude_from_each_other_s_news) {
  constexpr std::int64_t kBuckets = 300;
  const cuda::Stream stream;
  const DeviceBuffer<cuda::News> news(3);
  const double factors[] = {0.25, 0, 0.75};
  for (std::size_t r = 0; r < 3; ++r) {
    std::vector<double> facts(2 * kBuckets, 1.0);
    if (r > 0) facts[2 * (kBuckets - 1)] = 0;
    const std::vector<double> squares(777, 0.5 + static_cast<double>(r));
    const DeviceBuffer<double> facts_there(facts);
    const DeviceBuffer<double> squares_there(squares);
    const DeviceBuffer<double> value(std::vector<double>{r == 1 ? std::nan("") : 8.0 + static_cast<double>(r)});
    cuda::write_news({.facts = facts_there.data(),
                      .buckets = kBuckets,
                      .value = value.data(),
                      .factor = factors[r],
                      .squares = squares_there.data(),
                      .squares_count = 777},
                     news.data() + r, stream);
    testing::must(cudaStreamSynchronize(stream));
  }
  const DeviceBuffer<cuda::Outcome> outcome(1);
  cuda::conclude(news.data(), 3, outcome.data(), stream);
  const cuda::Outcome found = outcome.read(stream)[0];
  CHECK_EQ(found.value, 0.25 * 8 + 0.75 * 10);
  CHECK_EQ(found.nonfinite_rank, 2.0);
  CHECK(std::abs(found.norm - std::sqrt(777 * (0.5 + 1.5 + 2.5))) < 1e-9);
  const DeviceBuffer<double> none(std::vector<double>(2 * kBuckets, 0.0));
  for (std::size_t r = 0; r < 3; ++r) {  // all are not finite: the first is told; without a value it is 0
    cuda::write_news({.facts = none.data(),
                      .buckets = kBuckets,
                      .value = nullptr,
                      .factor = 1,
                      .squares = nullptr,
                      .squares_count = 0},
                     news.data() + r, stream);
  }
  cuda::conclude(news.data(), 3, outcome.data(), stream);
  CHECK_EQ(outcome.read(stream)[0].nonfinite_rank, 0.0);
  CHECK_EQ(outcome.read(stream)[0].value, 0.0);
}

TEST(more_ranks_than_a_kernel_takes_are_refused) {
  const std::vector<const void*> sources(cuda::kMaxRanks + 1);
  const std::vector<double> factors(sources.size(), 1.0);
  CHECK_THROWS(cuda::weighted_sum(sources, factors, 1, DType::kFloat32, {}, nullptr, nullptr), std::invalid_argument);
}

}  // namespace fastseq
