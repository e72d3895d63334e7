// Conversion of elements in files and arrays, of any number type and byte order, to the types that models compute in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastseq {

enum class ElementType : std::uint8_t {
  kBool,
  kInt8,
  kUInt8,
  kInt16,
  kUInt16,
  kInt32,
  kUInt32,
  kInt64,
  kUInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64
};

std::size_t element_size(ElementType type);

// How many of the values are infinite or NaN; 0 for integers.
std::int64_t count_nonfinite(const void* values, std::int64_t numel, ElementType type);

struct Conversion {
  ElementType from;
  bool swapped;  // the byte order of elements is not this machine's
  ElementType to;
  // If either is set: to = (from - center[i % features]) * inverse[i % features], a missing one being 0 or 1.
  std::int64_t features = 1;
  const double* center = nullptr;
  const double* inverse = nullptr;
};

// Converts like static_cast, except that any byte other than 0 is true, and that 16-bit floats are converted through
// float. Scaled values are computed in double, then rounded to `to`.
class ElementConverter {
 public:
  // Throws std::invalid_argument for unsupported conversions: only integers become integers, only floats are scaled,
  // and the targets are bool, int64 and the floats. Keeps a copy of center and inverse.
  explicit ElementConverter(const Conversion& conversion);

  // Converts `numel` elements, which may be unaligned, to the aligned `to`; `first` is the first one's place in its row
  // of features. Returns how many floats in `to` (in `from`, if `to` is bool) are infinite or NaN. The two must not
  // overlap, but `to` may be `from` if their elements have the same size.
  std::int64_t operator()(const void* from, std::int64_t numel, void* to, std::int64_t first = 0) const;

  // The same for `rows` rows of `numel` elements, from_stride bytes and to_stride bytes apart; each row starts at
  // feature 0. Rows may be tiny.
  std::int64_t convert_rows(const std::byte* from, std::int64_t from_stride, std::int64_t rows, std::int64_t numel,
                            std::byte* to, std::int64_t to_stride) const;

  bool copies() const { return copies_; }  // the bytes stay unchanged
  // Whether contiguous rows of `numel` elements may be treated as one row.
  bool joins(std::int64_t numel) const { return period_ == 0 || numel % features_ == 0; }
  std::int64_t from_size() const { return from_size_; }
  std::int64_t to_size() const { return to_size_; }

 private:
  using Kernel = void (*)(const void* from, std::int64_t numel, const double* center, const double* inverse, void* to);

  std::int64_t convert_block(const std::byte* from, std::int64_t numel, std::int64_t feature, std::byte* to) const;

  ElementType from_;
  ElementType to_;
  bool swapped_;
  bool copies_ = false;
  std::int64_t from_size_;
  std::int64_t to_size_;
  std::int64_t features_;
  std::int64_t period_ = 0;  // length of the tables, a multiple of `features` to make loops over them long; 0: none
  std::vector<double> table_;
  Kernel kernel_ = nullptr;
};

}  // namespace fastseq
