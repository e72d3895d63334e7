// Elements as they lie in files and arrays, of any number type and byte order, on their way into the types that models
// compute in.
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
  bool swapped;  // the bytes of each element are in the order that is not this machine's
  ElementType to;
  // If either is set: to = (from - center[i % features]) * inverse[i % features], a missing one being 0 or 1.
  std::int64_t features = 1;
  const double* center = nullptr;
  const double* inverse = nullptr;
};

// Converts as static_cast does, except that a bool is any byte that is not 0, and 16-bit floats come by way of float.
// What is scaled is computed in double, then rounded to `to`.
class ElementConverter {
 public:
  // Throws std::invalid_argument for what is not converted: integers are made from integers alone, only floats are
  // scaled, and the targets are bool, int64 and the floats. Keeps a copy of center and inverse.
  explicit ElementConverter(const Conversion& conversion);

  // Converts `numel` elements, which may lie at any address, to the aligned `to`; `first` is the first one's place in
  // its row of features. Returns how many floats in `to` (in `from`, where `to` is bool) are infinite or NaN. Neither
  // overlaps the other, but `to` may be `from` where their elements have one size.
  std::int64_t operator()(const void* from, std::int64_t numel, void* to, std::int64_t first = 0) const;

  // The same for `rows` rows of `numel` elements that begin from_stride bytes and to_stride bytes after each other; the
  // first element of each row is of feature 0. Rows may be tiny.
  std::int64_t convert_rows(const std::byte* from, std::int64_t from_stride, std::int64_t rows, std::int64_t numel,
                            std::byte* to, std::int64_t to_stride) const;

  bool copies() const { return copies_; }  // the bytes stay as they are
  // Whether rows of `numel` elements that follow each other without a gap may be taken for one.
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
  std::int64_t period_ = 0;  // length of the tables, some times `features`, so that loops over them are long; 0: none
  std::vector<double> table_;
  Kernel kernel_ = nullptr;
};

}  // namespace fastseq
