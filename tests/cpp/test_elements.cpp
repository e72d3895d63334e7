#include "core/base/elements.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/base/half.h"

namespace fastseq {

namespace {

using Bytes = std::vector<std::byte>;

constexpr std::array kAll = {ElementType::kBool,   ElementType::kInt8,    ElementType::kUInt8,    ElementType::kInt16,
                             ElementType::kUInt16, ElementType::kInt32,   ElementType::kUInt32,   ElementType::kInt64,
                             ElementType::kUInt64, ElementType::kFloat16, ElementType::kBFloat16, ElementType::kFloat32,
                             ElementType::kFloat64};
constexpr std::array kFloats = {ElementType::kFloat16, ElementType::kBFloat16, ElementType::kFloat32,
                                ElementType::kFloat64};

bool is_float(ElementType type) { return type >= ElementType::kFloat16; }

template <class T>
T at(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// One element as a number, rounded once.
template <class Number>
Number number(const std::byte* bytes, ElementType type) {
  switch (type) {
    case ElementType::kBool:
      return at<std::uint8_t>(bytes) != 0 ? 1 : 0;
    case ElementType::kInt8:
      return static_cast<Number>(at<std::int8_t>(bytes));
    case ElementType::kUInt8:
      return static_cast<Number>(at<std::uint8_t>(bytes));
    case ElementType::kInt16:
      return static_cast<Number>(at<std::int16_t>(bytes));
    case ElementType::kUInt16:
      return static_cast<Number>(at<std::uint16_t>(bytes));
    case ElementType::kInt32:
      return static_cast<Number>(at<std::int32_t>(bytes));
    case ElementType::kUInt32:
      return static_cast<Number>(at<std::uint32_t>(bytes));
    case ElementType::kInt64:
      return static_cast<Number>(at<std::int64_t>(bytes));
    case ElementType::kUInt64:
      return static_cast<Number>(at<std::uint64_t>(bytes));
    case ElementType::kFloat16:
      return static_cast<Number>(static_cast<float>(at<Float16>(bytes)));
    case ElementType::kBFloat16:
      return static_cast<Number>(static_cast<float>(at<BFloat16>(bytes)));
    case ElementType::kFloat32:
      return static_cast<Number>(at<float>(bytes));
    case ElementType::kFloat64:
      return static_cast<Number>(at<double>(bytes));
  }
  throw std::logic_error("type");
}

// `value` as an element of a floating-point type, then as a number again.
double stored(double value, ElementType type) {
  const auto narrow = static_cast<float>(value);
  if (type == ElementType::kFloat64) return value;
  if (type == ElementType::kFloat32) return narrow;
  if (type == ElementType::kFloat16) return static_cast<double>(static_cast<float>(Float16(narrow)));
  return static_cast<double>(static_cast<float>(BFloat16(narrow)));
}

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

// Random bits: all numbers, infinities, NaNs and subnormal ones.
Bytes some_bytes(std::int64_t count) {
  Bytes bytes(static_cast<std::size_t>(count));
  unsigned state = 11;
  for (std::byte& byte : bytes) {
    state = state * 1664525U + 1013904223U;
    byte = static_cast<std::byte>(state >> 24);
  }
  // A run of each exponent that matters, whatever the type.
  const std::array<unsigned, 6> patterns = {0x00, 0xff, 0x7f, 0x80, 0x7c, 0xf0};
  for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), 6 * 48); ++i) {
    bytes[i] = static_cast<std::byte>(patterns[i / 48]);
  }
  return bytes;
}

std::string name(ElementType from, ElementType to) {
  return std::to_string(static_cast<int>(from)) + " to " + std::to_string(static_cast<int>(to));
}

void expect(bool right, const std::string& what, int line) {
  if (!right) testing::fail(__FILE__, line, what);
}

void check_conversion(ElementType from, ElementType to, bool swapped, std::int64_t misaligned) {
  const std::int64_t numel = 5003;
  const auto size = static_cast<std::int64_t>(element_size(from));
  const Bytes source = some_bytes(numel * size + misaligned);
  const auto to_size = static_cast<std::int64_t>(element_size(to));
  std::vector<double> buffer(static_cast<std::size_t>(numel), 3.0);  // aligned for all
  auto* target = reinterpret_cast<std::byte*>(buffer.data());
  const ElementConverter convert({.from = from, .swapped = swapped, .to = to});
  const std::int64_t count = convert(source.data() + misaligned, numel, target);
  std::int64_t expected_count = 0;
  bool right = true;
  for (std::int64_t i = 0; i < numel; ++i) {
    Bytes element(source.data() + misaligned + i * size, source.data() + misaligned + (i + 1) * size);
    if (swapped) std::ranges::reverse(element);
    const auto value = number<double>(element.data(), from);
    const std::byte* result = target + i * to_size;
    if (to == ElementType::kBool) {
      right &= at<std::uint8_t>(result) == (value != 0 ? 1 : 0);
      if (is_float(from)) expected_count += std::isfinite(value) ? 0 : 1;
    } else if (to == ElementType::kInt64) {
      right &= at<std::int64_t>(result) == (from == ElementType::kUInt64 ? at<std::int64_t>(element.data())
                                                                         : number<std::int64_t>(element.data(), from));
    } else {
      const bool wide = to == ElementType::kFloat64;  // 16 bits are converted through float
      const double expected = wide ? value : stored(static_cast<double>(number<float>(element.data(), from)), to);
      right &= same(number<double>(result, to), expected);
      expected_count += std::isfinite(expected) ? 0 : 1;
    }
  }
  expect(right, name(from, to), __LINE__);
  CHECK_EQ(count, expected_count);
}

}  // namespace

TEST(every_type_is_converted_as_by_a_cast) {
  for (const ElementType from : kAll) {
    for (const ElementType to : kFloats) {
      for (const bool swapped : {false, true}) {
        for (const std::int64_t misaligned : {0, 1}) check_conversion(from, to, swapped, misaligned);
      }
    }
    for (const bool swapped : {false, true}) check_conversion(from, ElementType::kBool, swapped, 1);
    if (!is_float(from)) check_conversion(from, ElementType::kInt64, true, 0);
    if (!is_float(from)) check_conversion(from, ElementType::kInt64, false, 1);
  }
}

TEST(bytes_that_stay_are_copied_as_they_are) {
  for (const ElementType type : kFloats) {
    const std::int64_t numel = 3001;
    const auto bytes = numel * static_cast<std::int64_t>(element_size(type));
    const Bytes source = some_bytes(bytes);
    std::vector<double> buffer(static_cast<std::size_t>(numel));
    const ElementConverter convert({.from = type, .swapped = false, .to = type});
    CHECK(convert.copies());
    const std::int64_t count = convert(source.data(), numel, buffer.data());
    CHECK(count > 0);
    CHECK(std::memcmp(buffer.data(), source.data(), source.size()) == 0);
    CHECK_EQ(convert(buffer.data(), numel, buffer.data()), count);  // in place
    CHECK_EQ(count_nonfinite(buffer.data(), numel, type), count);
    CHECK(!ElementConverter({.from = type, .swapped = true, .to = type}).copies());
  }
}

TEST(scaling_is_computed_in_double) {
  for (const std::int64_t features : {1, 3, 32, 2500}) {
    std::vector<double> center(static_cast<std::size_t>(features));
    std::vector<double> inverse(center.size());
    for (std::size_t i = 0; i < center.size(); ++i) {
      center[i] = 0.1 + static_cast<double>(i % 17);
      inverse[i] = 1.0 / (3.0 + static_cast<double>(i % 5));
    }
    for (const ElementType from : kAll) {
      for (const ElementType to : kFloats) {
        for (const int given : {1, 2, 3}) {  // center alone, inverse alone, both
          const ElementConverter convert({.from = from,
                                          .swapped = false,
                                          .to = to,
                                          .features = features,
                                          .center = (given & 1) != 0 ? center.data() : nullptr,
                                          .inverse = (given & 2) != 0 ? inverse.data() : nullptr});
          const std::int64_t numel = 4001;
          const std::int64_t first = 5;
          const auto size = static_cast<std::int64_t>(element_size(from));
          const Bytes source = some_bytes(numel * size);
          std::vector<double> buffer(static_cast<std::size_t>(numel));
          const std::int64_t count = convert(source.data(), numel, buffer.data(), first);
          std::int64_t expected_count = 0;
          bool right = true;
          for (std::int64_t i = 0; i < numel; ++i) {
            const std::byte* element = source.data() + i * size;
            const auto feature = static_cast<std::size_t>((first + i) % features);
            const double c = (given & 1) != 0 ? center[feature] : 0.0;
            const double s = (given & 2) != 0 ? inverse[feature] : 1.0;
            const double expected = stored((number<double>(element, from) - c) * s, to);
            const auto* result = reinterpret_cast<const std::byte*>(buffer.data());
            right &= same(number<double>(result + i * static_cast<std::int64_t>(element_size(to)), to), expected);
            expected_count += std::isfinite(expected) ? 0 : 1;
          }
          expect(right, name(from, to) + " scaled, features " + std::to_string(features), __LINE__);
          CHECK_EQ(count, expected_count);
        }
      }
    }
  }
}

TEST(rows_of_any_length_and_stride) {
  const std::vector<double> center = {1.5, -2.0, 0.25, 4.0};
  for (const ElementType from : {ElementType::kInt16, ElementType::kFloat32}) {
    for (const bool scaled : {false, true}) {
      const ElementConverter convert({.from = from,
                                      .swapped = false,
                                      .to = ElementType::kFloat32,
                                      .features = 4,
                                      .center = scaled ? center.data() : nullptr});
      const auto size = static_cast<std::int64_t>(element_size(from));
      for (const std::int64_t numel : {1, 3, 4, 8, 300, 2500}) {
        for (const std::int64_t gap : {0, 1, 40}) {
          for (const std::int64_t to_gap : {0, 5}) {
            for (const bool backwards : {false, true}) {
              const std::int64_t rows = 2100 / numel + 3;
              const std::int64_t stride = (numel + gap) * size + (gap == 1 ? 1 : 0);
              const Bytes source = some_bytes(rows * stride);
              const std::int64_t to_row = numel + to_gap;
              std::vector<float> target(static_cast<std::size_t>(rows * to_row), 77.0F);
              const std::byte* start = source.data() + (backwards ? (rows - 1) * stride : 0);
              const std::int64_t step = backwards ? -stride : stride;
              const std::int64_t count =
                  convert.convert_rows(start, step, rows, numel, reinterpret_cast<std::byte*>(target.data()),
                                       to_row * static_cast<std::int64_t>(sizeof(float)));
              std::int64_t expected_count = 0;
              bool right = true;
              for (std::int64_t row = 0; row < rows; ++row) {
                for (std::int64_t i = 0; i < to_row; ++i) {
                  const float result = target[static_cast<std::size_t>(row * to_row + i)];
                  float expected = 77.0F;  // nothing is written between the rows
                  if (i < numel) {
                    expected = number<float>(start + row * step + i * size, from);
                    if (scaled) expected -= static_cast<float>(center[static_cast<std::size_t>(i % 4)]);
                    expected_count += std::isfinite(expected) ? 0 : 1;
                  }
                  right &= same(result, expected);
                }
              }
              expect(right, "rows of " + std::to_string(numel) + ", gap " + std::to_string(gap), __LINE__);
              CHECK_EQ(count, expected_count);
            }
          }
        }
      }
    }
  }
}

TEST(elements_of_one_size_are_converted_where_they_are) {
  const double center = 2.5;
  const std::array pairs = {
      std::pair{ElementType::kInt16, ElementType::kFloat16}, std::pair{ElementType::kFloat32, ElementType::kFloat32},
      std::pair{ElementType::kInt32, ElementType::kFloat32}, std::pair{ElementType::kFloat64, ElementType::kFloat64},
      std::pair{ElementType::kInt64, ElementType::kFloat64}};
  for (const auto& [from, to] : pairs) {
    for (const bool swapped : {false, true}) {
      for (const double* scaled : {static_cast<const double*>(nullptr), &center}) {
        const std::int64_t numel = 5003;
        const Bytes source = some_bytes(numel * static_cast<std::int64_t>(element_size(from)));
        const ElementConverter convert({.from = from, .swapped = swapped, .to = to, .center = scaled});
        std::vector<double> elsewhere(static_cast<std::size_t>(numel));
        std::vector<double> in_place(elsewhere.size());
        std::memcpy(in_place.data(), source.data(), source.size());
        const std::int64_t count = convert(source.data(), numel, elsewhere.data());
        CHECK_EQ(convert(in_place.data(), numel, in_place.data()), count);
        expect(std::memcmp(in_place.data(), elsewhere.data(), source.size()) == 0, name(from, to), __LINE__);
      }
    }
  }
}

TEST(overflow_counts_as_not_finite) {
  const std::vector<double> values = {1e300, 1.0, -7e4, 65519.0};
  std::vector<float> floats(values.size());
  std::vector<Float16> halves(values.size());
  const auto type = ElementType::kFloat64;
  CHECK_EQ(
      ElementConverter({.from = type, .swapped = false, .to = ElementType::kFloat32})(values.data(), 4, floats.data()),
      1);
  CHECK_EQ(
      ElementConverter({.from = type, .swapped = false, .to = ElementType::kFloat16})(values.data(), 4, halves.data()),
      2);
}

TEST(what_is_not_converted_is_refused) {
  const double one = 1.0;
  const auto make = [&](ElementType from, ElementType to, const double* center, std::int64_t features) {
    return ElementConverter({.from = from, .swapped = false, .to = to, .features = features, .center = center});
  };
  for (const ElementType from : kFloats)
    CHECK_THROWS(make(from, ElementType::kInt64, nullptr, 1), std::invalid_argument);
  CHECK_THROWS(make(ElementType::kInt8, ElementType::kInt8, nullptr, 1), std::invalid_argument);
  CHECK_THROWS(make(ElementType::kInt64, ElementType::kInt32, nullptr, 1), std::invalid_argument);
  CHECK_THROWS(make(ElementType::kInt64, ElementType::kInt64, &one, 1), std::invalid_argument);
  CHECK_THROWS(make(ElementType::kFloat32, ElementType::kBool, &one, 1), std::invalid_argument);
  CHECK_THROWS(make(ElementType::kFloat32, ElementType::kFloat32, &one, 0), std::invalid_argument);
}

}  // namespace fastseq
