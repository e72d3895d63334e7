#include "core/base/pack_checked.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "core/base/convert.h"
#include "core/base/dispatch.h"
#include "ranges.h"

namespace fastseq {

namespace {

const std::vector<std::int64_t> numels = {0, 1, 15, 4096, 9001, 0, 64, 4095};

std::vector<std::vector<double>> some_values() {
  std::vector<std::vector<double>> values;
  unsigned state = 7;
  for (const std::int64_t numel : numels) {
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
    convert(tensor.data(), DType::kFloat64, static_cast<std::int64_t>(tensor.size()), stored.back().data(), from);
  }
  for (const auto& bytes : stored) tensors.push_back(bytes.data());
  Packed result;
  result.layout = flat_layout(numels, to, alignment);
  std::vector<double> ones(static_cast<std::size_t>(result.layout.numel), 1.0);
  std::vector<std::byte> flat(ones.size() * item_size(to));
  convert(ones.data(), DType::kFloat64, result.layout.numel, flat.data(), to);
  result.facts = pack_checked(tensors, numels, from, result.layout, to, scale, flat.data(), parallel_for);
  result.flat.resize(ones.size());
  convert(flat.data(), to, result.layout.numel, result.flat.data(), DType::kFloat64);
  return result;
}

// The value rounded to `dtype`.
double as(double value, DType dtype) {
  std::uint64_t bits = 0;
  convert(&value, DType::kFloat64, 1, &bits, dtype);
  double back = 0;
  convert(&bits, dtype, 1, &back, DType::kFloat64);
  return back;
}

constexpr std::array kDTypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};

}  // namespace

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
        CHECK(std::abs(result.facts.sum_of_squares - squares) <= 1e-6 * squares);
        double sum = 0;
        for (const double x : result.flat) sum += std::abs(x);
        CHECK(std::abs(sum - sum_of_all) <= 1e-9 * sum);  // gaps are zero
      }
    }
  }
}

TEST(facts_do_not_depend_on_threads) {
  const auto values = some_values();
  const double serial = packed(values, DType::kFloat32, DType::kFloat32, 64, 0.3, serial_for).facts.sum_of_squares;
  for (const ParallelFor parallel_for : testing::parallel_fors()) {
    CHECK_EQ(packed(values, DType::kFloat32, DType::kFloat32, 64, 0.3, parallel_for).facts.sum_of_squares, serial);
  }
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
  CHECK(packed(values, DType::kFloat32, DType::kFloat32, 64, 1.0, serial_for).facts.finite);   // its square is not
}

}  // namespace fastseq
