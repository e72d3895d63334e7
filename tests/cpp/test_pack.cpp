#include "core/base/pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
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
  pack(tensors.pointers, numels, dtype, layout, dtype, scale, flat.data(), parallel_for);
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

constexpr std::array<std::int64_t, 8> kNumels = {0, 1, 15, 4096, 9001, 0, 64, 4095};

std::vector<std::vector<double>> some_values() {
  std::vector<std::vector<double>> values;
  unsigned state = 7;
  for (const std::int64_t numel : kNumels) {
    values.emplace_back();
    for (std::int64_t i = 0; i < numel; ++i) {
      state = state * 1664525U + 1013904223U;
      values.back().push_back(static_cast<double>(state >> 20) / 256.0 - 8.0);
    }
  }
  return values;
}

struct Packed {
  PackedFacts facts{};
  FlatLayout layout;
  std::vector<double> flat;
};

// Packs `values`, stored as `from`, into a buffer of `to` that held ones.
Packed packed(const std::vector<std::vector<double>>& values, DType from, DType to, std::int64_t alignment,
              double scale, ParallelFor parallel_for) {
  std::vector<std::vector<std::byte>> stored;
  std::vector<const void*> tensors;
  tensors.reserve(values.size());
  for (const auto& tensor : values) {
    stored.emplace_back(tensor.size() * item_size(from) + 1);
    scaled_copy(tensor.data(), DType::kFloat64, static_cast<std::int64_t>(tensor.size()), 1, stored.back().data(),
                from);
  }
  for (const auto& bytes : stored) tensors.push_back(bytes.data());
  Packed result;
  result.layout = flat_layout(kNumels, to, alignment);
  std::vector<double> ones(static_cast<std::size_t>(result.layout.numel), 1.0);
  std::vector<std::byte> flat(ones.size() * item_size(to));
  scaled_copy(ones.data(), DType::kFloat64, result.layout.numel, 1, flat.data(), to);
  result.facts = pack(tensors, kNumels, from, result.layout, to, scale, flat.data(), parallel_for);
  result.flat.resize(ones.size());
  scaled_copy(flat.data(), to, result.layout.numel, 1, result.flat.data(), DType::kFloat64);
  return result;
}

// The value rounded to `dtype`.
double as(double value, DType dtype) {
  std::uint64_t bits = 0;
  scaled_copy(&value, DType::kFloat64, 1, 1, &bits, dtype);
  double back = 0;
  scaled_copy(&bits, dtype, 1, 1, &back, DType::kFloat64);
  return back;
}

constexpr std::array kDTypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};

}  // namespace

TEST(packs_float16) { check_dtype<Float16>(DType::kFloat16); }
TEST(packs_bfloat16) { check_dtype<BFloat16>(DType::kBFloat16); }
TEST(packs_float32) { check_dtype<float>(DType::kFloat32); }
TEST(packs_float64) { check_dtype<double>(DType::kFloat64); }

TEST(values_are_scaled_cast_and_summed) {
  const auto values = some_values();
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const std::int64_t alignment : {1, 64}) {
        const Packed result = packed(values, from, to, alignment, 0.5, serial_for);
        double squares = 0;
        double sum_of_all = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          for (std::size_t j = 0; j < values[i].size(); ++j) {
            const double wanted = as(0.5 * as(values[i][j], from), to);
            CHECK_EQ(result.flat[static_cast<std::size_t>(result.layout.offsets[i]) + j], wanted);
            squares += wanted * wanted;
            sum_of_all += std::abs(wanted);
          }
        }
        CHECK(result.facts.finite);
        CHECK(std::abs(result.facts.sum_of_squares - squares) <= 1e-12 * squares);
        double sum = 0;
        for (const double x : result.flat) sum += std::abs(x);
        CHECK(std::abs(sum - sum_of_all) <= 1e-9 * sum);  // gaps are zero
      }
    }
  }
}

TEST(facts_depend_neither_on_threads_nor_on_the_instruction_set) {
  const auto values = some_values();
  for (const DType dtype : kDTypes) {
    const double serial = packed(values, dtype, dtype, 64, 0.3, serial_for).facts.sum_of_squares;
    testing::for_every_width([&] {
      for (const ParallelFor parallel_for : testing::parallel_fors()) {
        CHECK_EQ(packed(values, dtype, dtype, 64, 0.3, parallel_for).facts.sum_of_squares, serial);
      }
    });
  }
}

TEST(values_are_looked_at_where_they_are) {
  const auto values = some_values();
  std::vector<const void*> tensors;
  tensors.reserve(values.size());
  for (const auto& tensor : values) tensors.push_back(tensor.data());
  const PackedFacts wanted = packed(values, DType::kFloat64, DType::kFloat64, 1, 1.0, serial_for).facts;
  for (const ParallelFor parallel_for : testing::parallel_fors()) {
    const PackedFacts found = facts_of(tensors, kNumels, DType::kFloat64, parallel_for);
    CHECK(found.finite);
    CHECK_EQ(found.sum_of_squares, wanted.sum_of_squares);
  }
  double sum = 0;
  for (const auto& tensor : values) {
    const auto numel = static_cast<std::int64_t>(tensor.size());
    sum += facts_of(tensor.data(), numel, DType::kFloat64).sum_of_squares;
  }
  CHECK(std::abs(sum - wanted.sum_of_squares) <= 1e-12 * sum);
}

TEST(values_are_scaled_where_they_are) {
  for (const DType dtype : kDTypes) {
    for (const double scale : {1.0, 0.3}) {
      const std::vector<double> values = some_values()[4];
      const auto numel = static_cast<std::int64_t>(values.size());
      std::vector<std::byte> stored(values.size() * item_size(dtype));
      scaled_copy(values.data(), DType::kFloat64, numel, 1, stored.data(), dtype);
      std::vector<std::byte> wanted(stored.size());
      const PackedFacts apart = scaled_copy(stored.data(), dtype, numel, scale, wanted.data(), dtype);
      const PackedFacts facts = scaled_copy(stored.data(), dtype, numel, scale, stored.data(), dtype);
      CHECK(stored == wanted);
      CHECK_EQ(facts.sum_of_squares, apart.sum_of_squares);
    }
  }
}

TEST(a_scale_of_1_copies_the_bits_and_in_place_writes_nothing) {
  const std::vector<std::uint32_t> bits = {0x7f800001U, 0xffc12345U, 0x80000000U, 0x00000001U};  // NaNs, -0, subnormal
  std::vector<std::uint32_t> copied(bits.size());
  CHECK(!scaled_copy(bits.data(), DType::kFloat32, 4, 1, copied.data(), DType::kFloat32).finite);
  CHECK(copied == bits);
  static constexpr std::array<float, 3> kConstant = {1, 2, 3};  // in memory that cannot be written
  auto* values = const_cast<float*>(kConstant.data());          // NOLINT(cppcoreguidelines-pro-type-const-cast)
  CHECK_EQ(scaled_copy(values, DType::kFloat32, 3, 1, values, DType::kFloat32).sum_of_squares, 14.0);
}

TEST(one_value_that_is_not_finite_is_noticed_wherever_it_is) {
  for (const DType dtype : kDTypes) {
    for (const double bad : {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
                             std::numeric_limits<double>::quiet_NaN()}) {
      for (const std::size_t i : {1U, 2U, 4U, 7U}) {
        auto values = some_values();
        values[i].back() = bad;
        CHECK(!packed(values, dtype, dtype, 64, 1.0, serial_for).facts.finite);
      }
    }
  }
  auto values = some_values();
  values[4][4711] = 1e30;
  CHECK(!packed(values, DType::kFloat32, DType::kFloat16, 64, 1.0, serial_for).facts.finite);  // infinite as fp16
  const PackedFacts facts = packed(values, DType::kFloat32, DType::kFloat32, 64, 1.0, serial_for).facts;
  CHECK(facts.finite);
  CHECK(std::abs(facts.sum_of_squares - 1e60) < 1e54);  // which fp32 does not hold
  values[4][4711] = 1e200;
  CHECK(packed(values, DType::kFloat64, DType::kFloat64, 64, 1.0, serial_for).facts.finite);  // its square is not
}

}  // namespace fastseq
