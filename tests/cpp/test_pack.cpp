#include "core/base/pack.h"

#include <cstdint>
#include <numeric>
#include <vector>

#include "check.h"
#include "core/base/half.h"
#include "ranges.h"

namespace fastseq {

namespace {

// Tensors whose values identify tensor and position; every second one starts at an odd element of its memory.
template <class T>
struct Tensors {
  std::vector<std::vector<T>> memory;
  std::vector<std::int64_t> numels;
  std::vector<const void*> pointers;
  std::vector<void*> writable;

  explicit Tensors(std::vector<std::int64_t> lengths) : numels(std::move(lengths)) {
    for (std::size_t i = 0; i < numels.size(); ++i) {
      const std::size_t shift = i % 2;
      memory.emplace_back(static_cast<std::size_t>(numels[i]) + shift);
      for (std::int64_t j = 0; j < numels[i]; ++j) memory[i][static_cast<std::size_t>(j) + shift] = value(i, j);
      pointers.push_back(memory[i].data() + shift);
      writable.push_back(memory[i].data() + shift);
    }
  }
  static T value(std::size_t i, std::int64_t j) {
    return T(static_cast<float>((static_cast<std::int64_t>(i) * 31 + j) % 97 - 48));
  }
};

template <class T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return static_cast<float>(value);
  }
}

template <class T>
void check_pack(DType dtype, const std::vector<std::int64_t>& numels, std::int64_t alignment, double scale,
                ParallelFor parallel_for) {
  Tensors<T> tensors(numels);
  const FlatLayout layout = flat_layout(numels, dtype, alignment);
  std::vector<T> flat(static_cast<std::size_t>(layout.numel), T(7.0F));
  pack(tensors.pointers, numels, layout, dtype, scale, flat.data(), parallel_for);
  std::vector<double> expected(flat.size(), 0.0);  // gaps become zero
  for (std::size_t i = 0; i < numels.size(); ++i) {
    for (std::int64_t j = 0; j < numels[i]; ++j) {
      expected[static_cast<std::size_t>(layout.offsets[i] + j)] = scale * to_double(Tensors<T>::value(i, j));
    }
  }
  bool same = true;
  for (std::size_t i = 0; i < flat.size(); ++i) same = same && to_double(flat[i]) == expected[i];
  CHECK(same);

  for (auto& memory : tensors.memory) memory.assign(memory.size(), T(7.0F));
  unpack(flat.data(), numels, layout, dtype, 1 / scale, tensors.writable, parallel_for);
  for (std::size_t i = 0; i < numels.size(); ++i) {
    for (std::int64_t j = 0; j < numels[i]; ++j) {
      same = same && to_double(static_cast<const T*>(tensors.pointers[i])[j]) == to_double(Tensors<T>::value(i, j));
    }
    if (i % 2 == 1) CHECK_EQ(to_double(tensors.memory[i][0]), 7.0);  // nothing before it was written
  }
  CHECK(same);
}

template <class T>
void check_dtype(DType dtype) {
  const std::vector<std::vector<std::int64_t>> cases = {
      {}, {0}, {1}, {0, 0, 3}, {16, 16}, {5, 0, 17, 1, 64, 63}, {100'003, 1, 0, 70'000}};
  for (const auto& numels : cases) {
    for (const std::int64_t alignment : {std::int64_t{1}, kFlatAlignment}) {
      for (const double scale : {1.0, -0.5}) {
        for (const ParallelFor parallel_for : testing::parallel_fors()) {
          check_pack<T>(dtype, numels, alignment, scale, parallel_for);
        }
      }
    }
  }
}

}  // namespace

TEST(packs_float16) { check_dtype<Float16>(DType::kFloat16); }
TEST(packs_bfloat16) { check_dtype<BFloat16>(DType::kBFloat16); }
TEST(packs_float32) { check_dtype<float>(DType::kFloat32); }
TEST(packs_float64) { check_dtype<double>(DType::kFloat64); }

}  // namespace fastseq
