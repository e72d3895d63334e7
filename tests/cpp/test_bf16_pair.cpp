// Products of pairs of bf16 numbers, by the machine's instructions and without, against sums in double precision.
#include "core/base/bf16_pair.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "core/base/isa.h"
#include "core/base/simd.h"
#include "noise.h"
#include "ranges.h"

namespace fastseq {

namespace {

constexpr std::int64_t kLanes = 16;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double rounded(float value) { return static_cast<double>(static_cast<float>(BFloat16(value))); }

// sums[l] += a[q] b[q][l] for q < count.
struct Sums {
  template <int kBytes>
  static void run(const std::vector<Bf16Pair>& a, const std::vector<Bf16Pair>& b, float* sums) {
    for (std::int64_t lane = 0; lane < kLanes; lane += kBytes / 4) {
      simd::Vector<float, kBytes> sum;
      simd::load(sum, sums + lane);
      for (std::size_t q = 0; q < a.size(); ++q) {
        simd::Vector<std::uint32_t, kBytes> row;
        std::memcpy(&row, &b[q * at(kLanes) + at(lane)], sizeof(row));
        add_pair_products(sum, a[q], row);
      }
      simd::store(sums + lane, sum);
    }
  }
};

}  // namespace

TEST(sums_of_pairs_are_those_of_rounded_numbers) {
  for (const std::int64_t count : {1, 2, 7, 64, 1000}) {
    const auto a = testing::noise<float>(2 * count, 1);
    const auto b = testing::noise<float>(2 * count * kLanes, 2, 100);
    std::vector<Bf16Pair> a_pairs(at(count));
    std::vector<Bf16Pair> b_pairs(at(count * kLanes));
    to_pairs(a.data(), 2 * count, a_pairs.data());
    to_pairs(b.data(), 2 * count * kLanes, b_pairs.data());
    testing::for_every_width([&] {
      std::vector<float> found(at(kLanes), 3);
      run_best_bf16<Sums>(a_pairs, b_pairs, found.data());
      for (std::int64_t l = 0; l < kLanes; ++l) {
        double wanted = 3;
        double size = 3;
        for (std::int64_t i = 0; i < 2 * count; ++i) {
          const double product = rounded(a[at(i)]) * rounded(b[at((i / 2 * kLanes + l) * 2 + i % 2)]);
          wanted += product;
          size += std::abs(product);
        }
        // Each of the additions rounds its result, which is at most `size`.
        const double bound = 2 * static_cast<double>(count) * size * std::numeric_limits<float>::epsilon();
        CHECK(std::abs(static_cast<double>(found[at(l)]) - wanted) <= bound);
      }
    });
  }
}

TEST(sums_of_pairs_keep_what_is_not_finite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<Bf16Pair> ones(at(kLanes), Bf16Pair(1, 1));
  testing::for_every_width([&] {
    for (const Bf16Pair& pair : {Bf16Pair(kInfinity, 1), Bf16Pair(1, kInfinity), Bf16Pair(3e38F, 3e38F)}) {
      std::vector<float> found(at(kLanes));
      run_best_bf16<Sums>(std::vector{pair}, ones, found.data());
      for (const float value : found) CHECK(value == kInfinity);
    }
    for (const Bf16Pair& pair :
         {Bf16Pair(kInfinity, -kInfinity), Bf16Pair(std::nanf(""), 0), Bf16Pair(0, std::nanf(""))}) {
      std::vector<float> found(at(kLanes));
      run_best_bf16<Sums>(std::vector{pair}, ones, found.data());
      for (const float value : found) CHECK(std::isnan(value));
    }
  });
}

TEST(pairs_are_made_of_neighbours_or_of_rows) {
  const float from[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto check = [](const std::vector<Bf16Pair>& found, const std::vector<std::pair<float, float>>& wanted) {
    CHECK(found.size() == wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      CHECK(found[i].bits == Bf16Pair(wanted[i].first, wanted[i].second).bits);
    }
  };
  std::vector<Bf16Pair> pairs(2);
  to_pairs(from, 3, pairs.data());
  check(pairs, {{1, 2}, {3, 0}});
  pairs.resize(4);
  round_rows(from, 4, 2, 3, pairs.data(), 2);
  check(pairs, {{1, 2}, {3, 0}, {5, 6}, {7, 0}});
  pair_rows(from, 3, 3, 2, pairs.data());
  check(pairs, {{1, 4}, {2, 5}, {7, 0}, {8, 0}});
  CHECK(Bf16Pair(1, 0).bits == 0x3f80U);
  CHECK(Bf16Pair(0, 1).bits == 0x3f800000U);
}

}  // namespace fastseq
