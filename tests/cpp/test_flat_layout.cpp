#include "core/base/flat_layout.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace fastseq {

TEST(dense_layout_has_no_gaps) {
  const FlatLayout layout = flat_layout(std::array<std::int64_t, 4>{3, 0, 5, 1}, DType::kFloat32, 1);
  CHECK(layout.offsets == (std::vector<std::int64_t>{0, 3, 3, 8}));
  CHECK_EQ(layout.numel, 9);
}

TEST(aligned_layout_starts_tensors_at_cache_lines) {
  const FlatLayout layout = flat_layout(std::array<std::int64_t, 5>{1, 16, 17, 0, 2}, DType::kFloat32, kFlatAlignment);
  CHECK(layout.offsets == (std::vector<std::int64_t>{0, 16, 32, 64, 64}));
  CHECK_EQ(layout.numel, 80);
  const FlatLayout halves = flat_layout(std::array<std::int64_t, 2>{33, 1}, DType::kBFloat16, kFlatAlignment);
  CHECK(halves.offsets == (std::vector<std::int64_t>{0, 64}));
  CHECK_EQ(halves.numel, 96);
}

TEST(no_tensors_no_elements) {
  CHECK_EQ(flat_layout({}, DType::kFloat64, kFlatAlignment).numel, 0);
  CHECK(group_by_dtype({}).empty());
}

TEST(layout_refuses_nonsense) {
  constexpr auto kHuge = std::numeric_limits<std::int64_t>::max() / 8;
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 1>{-1}, DType::kFloat32, 64), std::invalid_argument);
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 1>{1}, DType::kFloat32, 0), std::invalid_argument);
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 1>{1}, DType::kFloat32, 2), std::invalid_argument);
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 1>{1}, DType::kFloat32, 6), std::invalid_argument);
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 1>{1}, DType::kFloat64, 60), std::invalid_argument);
  CHECK_THROWS(flat_layout(std::array<std::int64_t, 2>{kHuge - 16, 17}, DType::kFloat64, 64), std::invalid_argument);
}

TEST(groups_come_in_order_of_first_appearance) {
  using enum DType;
  const auto groups = group_by_dtype(std::array{kFloat32, kBFloat16, kFloat32, kFloat64, kBFloat16});
  CHECK_EQ(groups.size(), 3U);
  CHECK(groups[0].dtype == kFloat32 && groups[0].members == (std::vector<std::int64_t>{0, 2}));
  CHECK(groups[1].dtype == kBFloat16 && groups[1].members == (std::vector<std::int64_t>{1, 4}));
  CHECK(groups[2].dtype == kFloat64 && groups[2].members == (std::vector<std::int64_t>{3}));
}

TEST(tensors_of_a_dtype_lie_in_order_aligned_and_apart) {
  using enum DType;
  for (unsigned round = 0; round < 200; ++round) {
    std::mt19937 random(round);
    std::vector<std::int64_t> numels(random() % 21);
    std::vector<DType> dtypes(numels.size());
    std::ranges::generate(numels, [&] { return static_cast<std::int64_t>(random() % 201); });
    std::ranges::generate(dtypes, [&] { return std::array{kFloat16, kBFloat16, kFloat32, kFloat64}[random() % 4]; });
    std::vector<std::int64_t> seen;
    for (const DTypeGroup& group : group_by_dtype(dtypes)) {
      const auto item = static_cast<std::int64_t>(item_size(group.dtype));
      std::vector<std::int64_t> lengths(group.members.size());
      std::ranges::transform(group.members, lengths.begin(),
                             [&](std::int64_t i) { return numels[static_cast<std::size_t>(i)]; });
      const FlatLayout layout = flat_layout(lengths, group.dtype, kFlatAlignment);
      std::int64_t end = 0;
      for (std::size_t k = 0; k < lengths.size(); ++k) {
        CHECK(dtypes[static_cast<std::size_t>(group.members[k])] == group.dtype);
        CHECK_EQ(layout.offsets[k] * item % kFlatAlignment, 0);
        CHECK(layout.offsets[k] >= end && layout.offsets[k] - end < kFlatAlignment / item);
        end = layout.offsets[k] + lengths[k];
      }
      CHECK(layout.numel >= end && layout.numel - end < kFlatAlignment / item);
      CHECK(std::ranges::is_sorted(group.members));
      seen.insert(seen.end(), group.members.begin(), group.members.end());
    }
    std::ranges::sort(seen);
    std::vector<std::int64_t> all(numels.size());
    std::iota(all.begin(), all.end(), 0);
    CHECK(seen == all);
  }
}

}  // namespace fastseq
