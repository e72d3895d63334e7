#include "core/ranks/weighted_sum.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"

namespace fastseq {

namespace {

// The documented formula, one element at a time.
template <class T>
T expected(const std::vector<std::vector<T>>& sources, const std::vector<double>& factors, std::size_t i) {
  using Acc = Accumulate<T>;
  Acc sum{};
  bool first = true;
  for (std::size_t s = 0; s < sources.size(); ++s) {
    if (factors[s] == 0.0) continue;
    const auto factor = static_cast<Acc>(factors[s]);
    // volatile: the product is rounded before it is added
    const volatile Acc term = factor * static_cast<Acc>(sources[s][i]);
    sum = first ? Acc(term) : sum + term;
    first = false;
  }
  return T(sum);
}

bool same_bits(const void* a, const void* b, std::size_t bytes) {
  const auto* x = static_cast<const std::byte*>(a);
  const auto* y = static_cast<const std::byte*>(b);
  return std::equal(x, x + bytes, y);
}

template <class T>
void check_sums(DType dtype, const std::vector<double>& factors, std::size_t numel, bool in_place) {
  std::vector<std::vector<T>> sources(factors.size(), std::vector<T>(numel));
  unsigned state = 1;
  for (auto& source : sources) {
    for (T& x : source) {
      state = state * 1664525U + 1013904223U;
      x = T(static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / 65536.0F);
    }
  }
  std::vector<T> wanted(numel);
  for (std::size_t i = 0; i < numel; ++i) wanted[i] = expected(sources, factors, i);
  std::vector<T> out(numel);
  std::vector<const void*> from;
  std::vector<void*> to;
  for (auto& source : sources) {
    from.push_back(source.data());
    if (in_place) to.push_back(source.data());
  }
  if (!in_place) to.push_back(out.data());
  weighted_sum(from, factors, static_cast<std::int64_t>(numel), dtype, to);
  for (const void* result : to) CHECK(same_bits(result, wanted.data(), numel * sizeof(T)));
}

}  // namespace

TEST(sums_are_those_of_one_element_after_another) {
  for (const std::vector<double>& factors : {std::vector<double>{1},
                                             {0.5, 0.5},
                                             {0.3, 0.7},
                                             {1, 1, 1},
                                             {0.25, 0.25, 0.125, 0.375},
                                             {1, 2, 3, 4, 5},
                                             {0, 0.5, 0.5},
                                             {0.5, 0, 0, 0.5, 0}}) {
    for (const std::size_t numel : {0U, 1U, 15U, 16U, 1023U, 1024U, 1025U, 5000U}) {
      for (const bool in_place : {false, true}) {
        check_sums<float>(DType::kFloat32, factors, numel, in_place);
        check_sums<double>(DType::kFloat64, factors, numel, in_place);
        check_sums<Float16>(DType::kFloat16, factors, numel, in_place);
        check_sums<BFloat16>(DType::kBFloat16, factors, numel, in_place);
      }
    }
  }
}

TEST(data_without_weight_are_not_looked_at) {
  std::vector<float> nan(100, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> two(100, 2.0F);
  const std::vector<const void*> from = {nan.data(), two.data()};
  const std::vector<void*> to = {nan.data(), two.data()};
  weighted_sum(from, std::vector<double>{0, 1}, 100, DType::kFloat32, to);
  CHECK_EQ(nan[99], 2.0F);
  weighted_sum(from, std::vector<double>{0, 0}, 100, DType::kFloat32, to);
  CHECK_EQ(nan[0], 0.0F);
  CHECK_EQ(two[99], 0.0F);
}

TEST(slices_cover_everything_once_and_begin_at_cache_lines) {
  for (const DType dtype : {DType::kFloat16, DType::kFloat32, DType::kFloat64}) {
    for (const std::int64_t numel : {0, 1, 15, 16, 17, 1000, 4096, 99999}) {
      for (const int count : {1, 2, 3, 7}) {
        std::int64_t end = 0;
        for (int index = 0; index < count; ++index) {
          const Slice slice = slice_of(numel, dtype, index, count);
          CHECK_EQ(slice.begin, end);
          CHECK(slice.end >= slice.begin);
          CHECK(slice.begin == numel || slice.begin * static_cast<std::int64_t>(item_size(dtype)) % 64 == 0);
          end = slice.end;
        }
        CHECK_EQ(end, numel);
      }
    }
  }
}

}  // namespace fastseq
