#include "core/base/elements.h"

#include <algorithm>
#include <concepts>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/base/dispatch.h"
#include "core/base/half.h"
#include "core/base/isa.h"

namespace fastseq {

namespace {

constexpr std::int64_t kBlock = 2048;    // elements to convert, and check while they are in the cache
constexpr std::int64_t kTables = 1024;   // elements to repeat center and inverse to
constexpr std::int64_t kTinyRow = 1024;  // bytes of rows to gather before converting them together

struct Bool {
  std::uint8_t byte;
};

// Calls fn(Type<T>{}) with the T that `type` names.
template <class Fn>
decltype(auto) dispatch_element(ElementType type, Fn&& fn) {
  switch (type) {
    case ElementType::kBool:
      return fn(Type<Bool>{});
    case ElementType::kInt8:
      return fn(Type<std::int8_t>{});
    case ElementType::kUInt8:
      return fn(Type<std::uint8_t>{});
    case ElementType::kInt16:
      return fn(Type<std::int16_t>{});
    case ElementType::kUInt16:
      return fn(Type<std::uint16_t>{});
    case ElementType::kInt32:
      return fn(Type<std::int32_t>{});
    case ElementType::kUInt32:
      return fn(Type<std::uint32_t>{});
    case ElementType::kInt64:
      return fn(Type<std::int64_t>{});
    case ElementType::kUInt64:
      return fn(Type<std::uint64_t>{});
    case ElementType::kFloat16:
      return fn(Type<Float16>{});
    case ElementType::kBFloat16:
      return fn(Type<BFloat16>{});
    case ElementType::kFloat32:
      return fn(Type<float>{});
    case ElementType::kFloat64:
      return fn(Type<double>{});
  }
  throw std::invalid_argument("unknown element type");
}

template <class T>
inline constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;
template <class T>
inline constexpr bool kIsFloat = std::floating_point<T> || kIsHalf<T>;

template <class To, class From>
To value(From from) {
  if constexpr (std::is_same_v<From, Bool>) {
    return static_cast<To>(from.byte != 0 ? 1 : 0);
  } else if constexpr (kIsHalf<From>) {
    return static_cast<To>(static_cast<float>(from));
  } else {
    return static_cast<To>(from);
  }
}

template <class From>
bool is_true(From from) {
  if constexpr (std::is_same_v<From, Bool>) {
    return from.byte != 0;
  } else if constexpr (kIsHalf<From>) {
    return (from.bits & 0x7fffU) != 0;
  } else {
    return from != From{0};
  }
}

template <class From, class To>
void convert_range(const From* from, std::int64_t numel, To* to) {
  for (std::int64_t i = 0; i < numel; ++i) to[i] = value<To>(from[i]);
}

template <class From>
void bool_range(const From* from, std::int64_t numel, std::uint8_t* to) {
  for (std::int64_t i = 0; i < numel; ++i) to[i] = is_true(from[i]) ? 1 : 0;
}

// In double: in float, a center large relative to the scale would cost digits.
template <class From, class To>
void scale_range(const From* from, std::int64_t numel, const double* center, const double* inverse, To* to) {
  for (std::int64_t i = 0; i < numel; ++i) to[i] = static_cast<To>((value<double>(from[i]) - center[i]) * inverse[i]);
}

template <class Half>
void narrow_range(const float* from, std::int64_t numel, Half* to) {
  for (std::int64_t i = 0; i < numel; ++i) to[i] = Half(from[i]);
}

std::uint16_t reversed(std::uint16_t bits) { return __builtin_bswap16(bits); }
std::uint32_t reversed(std::uint32_t bits) { return __builtin_bswap32(bits); }
std::uint64_t reversed(std::uint64_t bits) { return __builtin_bswap64(bits); }

// Both may be unaligned.
template <class Bits>
void swap_range(const std::byte* from, std::int64_t numel, std::byte* to) {
  for (std::int64_t i = 0; i < numel; ++i) {
    Bits bits;
    std::memcpy(&bits, from + i * static_cast<std::int64_t>(sizeof(Bits)), sizeof(Bits));
    bits = reversed(bits);
    std::memcpy(to + i * static_cast<std::int64_t>(sizeof(Bits)), &bits, sizeof(Bits));
  }
}

void swap_bytes(const std::byte* from, std::int64_t numel, std::int64_t size, std::byte* to) {
  if (size == 2) return best<swap_range<std::uint16_t>>(from, numel, to);
  if (size == 4) return best<swap_range<std::uint32_t>>(from, numel, to);
  return best<swap_range<std::uint64_t>>(from, numel, to);
}

// A floating-point number is finite unless all bits of its exponent are set. At most kBlock values, so that even 16
// bits can hold their count.
template <class Bits>
Bits count_range(const Bits* values, std::int64_t numel, Bits exponent) {
  Bits count = 0;
  for (std::int64_t i = 0; i < numel; ++i) {
    count = static_cast<Bits>(count + ((values[i] & exponent) == exponent ? 1 : 0));
  }
  return count;
}

template <class Bits>
std::int64_t count_blocks(const void* values, std::int64_t numel, Bits exponent) {
  const auto* bits = static_cast<const Bits*>(values);
  std::int64_t count = 0;
  for (std::int64_t first = 0; first < numel; first += kBlock) {
    count +=
        static_cast<std::int64_t>(best<count_range<Bits>>(bits + first, std::min(kBlock, numel - first), exponent));
  }
  return count;
}

template <std::size_t kSize>
void copy_rows_of(const std::byte* from, std::int64_t from_stride, std::int64_t rows, std::byte* to,
                  std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) std::memcpy(to + i * to_stride, from + i * from_stride, kSize);
}

void copy_rows(const std::byte* from, std::int64_t from_stride, std::int64_t rows, std::int64_t bytes, std::byte* to,
               std::int64_t to_stride) {
  switch (bytes) {  // sizes known to the compiler are copied without a call
    case 1:
      return copy_rows_of<1>(from, from_stride, rows, to, to_stride);
    case 2:
      return copy_rows_of<2>(from, from_stride, rows, to, to_stride);
    case 4:
      return copy_rows_of<4>(from, from_stride, rows, to, to_stride);
    case 8:
      return copy_rows_of<8>(from, from_stride, rows, to, to_stride);
    case 16:
      return copy_rows_of<16>(from, from_stride, rows, to, to_stride);
    default:
      for (std::int64_t i = 0; i < rows; ++i) {
        std::memcpy(to + i * to_stride, from + i * from_stride, static_cast<std::size_t>(bytes));
      }
  }
}

// `values` repeated to `length`; `missing` where there are none.
void append_repeated(std::vector<double>& table, const double* values, std::int64_t features, std::int64_t length,
                     double missing) {
  for (std::int64_t i = 0; i < length; ++i) table.push_back(values == nullptr ? missing : values[i % features]);
}

}  // namespace

std::size_t element_size(ElementType type) {
  return dispatch_element(type, []<class T>(Type<T>) { return sizeof(T); });
}

std::int64_t count_nonfinite(const void* values, std::int64_t numel, ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return count_blocks<std::uint16_t>(values, numel, 0x7c00U);
    case ElementType::kBFloat16:
      return count_blocks<std::uint16_t>(values, numel, 0x7f80U);
    case ElementType::kFloat32:
      return count_blocks<std::uint32_t>(values, numel, 0x7f800000U);
    case ElementType::kFloat64:
      return count_blocks<std::uint64_t>(values, numel, 0x7ff0000000000000U);
    default:
      return 0;
  }
}

ElementConverter::ElementConverter(const Conversion& conversion)
    : from_(conversion.from),
      to_(conversion.to),
      swapped_(conversion.swapped && element_size(conversion.from) > 1),
      from_size_(static_cast<std::int64_t>(element_size(from_))),
      to_size_(static_cast<std::int64_t>(element_size(to_))),
      features_(conversion.features) {
  const bool scaled = conversion.center != nullptr || conversion.inverse != nullptr;
  if (scaled && features_ < 1) {
    throw std::invalid_argument("scaling needs at least one feature, not " + std::to_string(features_));
  }
  if (from_ == to_ && !scaled && (to_ == ElementType::kInt64 || to_ >= ElementType::kFloat16)) {
    copies_ = !swapped_;
    return;
  }
  if (scaled) period_ = features_ * std::max<std::int64_t>(1, kTables / features_);
  dispatch_element(from_, [&]<class From>(Type<From>) {
    // Half precision is computed as float and rounded in a second step.
    const auto to_float = [&]<class To>(Type<To>) {
      if (scaled) {
        kernel_ = [](const void* from, std::int64_t numel, const double* center, const double* inverse, void* to) {
          best<scale_range<From, To>>(static_cast<const From*>(from), numel, center, inverse, static_cast<To*>(to));
        };
      } else {
        kernel_ = [](const void* from, std::int64_t numel, const double*, const double*, void* to) {
          best<convert_range<From, To>>(static_cast<const From*>(from), numel, static_cast<To*>(to));
        };
      }
    };
    if (to_ == ElementType::kFloat64) {
      to_float(Type<double>{});
    } else if (to_ >= ElementType::kFloat16) {
      to_float(Type<float>{});
    } else if (scaled) {
      throw std::invalid_argument("only floating-point targets are scaled");
    } else if (to_ == ElementType::kBool) {
      kernel_ = [](const void* from, std::int64_t numel, const double*, const double*, void* to) {
        best<bool_range<From>>(static_cast<const From*>(from), numel, static_cast<std::uint8_t*>(to));
      };
    } else if (to_ != ElementType::kInt64) {
      throw std::invalid_argument("elements are converted to bool, int64 and floating-point types only");
    } else if constexpr (kIsFloat<From>) {
      throw std::invalid_argument("floating-point values are not converted to integers");
    } else {
      kernel_ = [](const void* from, std::int64_t numel, const double*, const double*, void* to) {
        best<convert_range<From, std::int64_t>>(static_cast<const From*>(from), numel, static_cast<std::int64_t*>(to));
      };
    }
  });
  if (!scaled) return;
  append_repeated(table_, conversion.center, features_, period_, 0.0);
  append_repeated(table_, conversion.inverse, features_, period_, 1.0);
}

std::int64_t ElementConverter::convert_block(const std::byte* from, std::int64_t numel, std::int64_t feature,
                                             std::byte* to) const {
  const auto bytes = static_cast<std::size_t>(numel * from_size_);
  if (kernel_ == nullptr) {
    if (swapped_) {
      swap_bytes(from, numel, from_size_, to);
    } else if (from != to) {
      std::memcpy(to, from, bytes);
    }
    return count_nonfinite(to, numel, to_);
  }
  alignas(64) std::byte aligned[kBlock * 8];
  if (swapped_) {
    swap_bytes(from, numel, from_size_, aligned);
    from = aligned;
  } else if (reinterpret_cast<std::uintptr_t>(from) % static_cast<std::uintptr_t>(from_size_) != 0) {
    std::memcpy(aligned, from, bytes);
    from = aligned;
  }
  const double* center = period_ == 0 ? nullptr : table_.data() + feature;
  const double* inverse = period_ == 0 ? nullptr : center + period_;
  if (to_size_ == 2) {
    alignas(64) float wide[kBlock];
    kernel_(from, numel, center, inverse, wide);
    if (to_ == ElementType::kFloat16) {
      best<narrow_range<Float16>>(wide, numel, reinterpret_cast<Float16*>(to));
    } else {
      best<narrow_range<BFloat16>>(wide, numel, reinterpret_cast<BFloat16*>(to));
    }
  } else {
    kernel_(from, numel, center, inverse, to);
  }
  return to_ == ElementType::kBool ? count_nonfinite(from, numel, from_) : count_nonfinite(to, numel, to_);
}

std::int64_t ElementConverter::operator()(const void* from, std::int64_t numel, void* to, std::int64_t first) const {
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  std::int64_t count = 0;
  std::int64_t feature = period_ == 0 ? 0 : first % features_;  // unused without tables
  for (std::int64_t done = 0; done < numel;) {
    std::int64_t block = std::min(kBlock, numel - done);
    if (period_ != 0) block = std::min(block, period_ - feature);
    count += convert_block(source + done * from_size_, block, feature, target + done * to_size_);
    done += block;
    feature += block;
    if (feature == period_) feature = 0;
  }
  return count;
}

std::int64_t ElementConverter::convert_rows(const std::byte* from, std::int64_t from_stride, std::int64_t rows,
                                            std::int64_t numel, std::byte* to, std::int64_t to_stride) const {
  const std::int64_t from_row = numel * from_size_;
  const std::int64_t to_row = numel * to_size_;
  std::int64_t count = 0;
  if (rows > 1 && joins(numel) && from_stride == from_row && to_stride == to_row) {
    return (*this)(from, rows * numel, to);
  }
  if (rows == 1 || !joins(numel) || std::max(from_row, to_row) > kTinyRow) {
    for (std::int64_t i = 0; i < rows; ++i) count += (*this)(from + i * from_stride, numel, to + i * to_stride);
    return count;
  }
  alignas(64) std::byte gathered[kBlock * 8];
  alignas(64) std::byte converted[kBlock * 8];
  const std::int64_t group = kBlock / std::max<std::int64_t>(numel, 1);
  for (std::int64_t first = 0; first < rows; first += group) {
    const std::int64_t some = std::min(group, rows - first);
    const std::byte* source = from + first * from_stride;
    if (from_stride != from_row) {
      copy_rows(source, from_stride, some, from_row, gathered, from_row);
      source = gathered;
    }
    if (to_stride == to_row) {
      count += (*this)(source, some * numel, to + first * to_stride);
    } else {
      count += (*this)(source, some * numel, converted);
      copy_rows(converted, to_row, some, to_row, to + first * to_stride, to_stride);
    }
  }
  return count;
}

}  // namespace fastseq
