#include "core/reader/chunk_filters.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "core/base/isa.h"

namespace fastseq {

namespace {

static_assert(std::endian::native == std::endian::little);

// Elements that are put together at a time: their parts stay in the first-level cache.
constexpr std::size_t kBlock = 4096;

template <std::size_t kItem>
void unshuffle_items(const std::byte* from, std::size_t elements, std::byte* to) {
  for (std::size_t first = 0; first < elements; first += kBlock) {
    const std::size_t last = std::min(first + kBlock, elements);
    FASTSEQ_INDEPENDENT
    for (std::size_t i = first; i < last; ++i) {
      for (std::size_t j = 0; j < kItem; ++j) to[i * kItem + j] = from[j * elements + i];
    }
  }
}

void unshuffle_any(const std::byte* from, std::size_t elements, std::size_t item, std::byte* to) {
  for (std::size_t i = 0; i < elements; ++i) {
    for (std::size_t j = 0; j < item; ++j) to[i * item + j] = from[j * elements + i];
  }
}

// The filter's parameters in a dataset.
struct ScaleOffset {
  enum Kind : std::uint32_t { kDecimal = 0, kInteger = 2 };
  std::uint32_t kind;
  int digits;  // after the decimal point
  std::size_t elements;
  bool floats;
  std::size_t size;  // of an element
  bool big_endian;
  bool has_fill;
  std::array<std::byte, 8> fill;  // the value that stands for missing elements
};

constexpr std::size_t kParameters = 20;
constexpr std::size_t kFirstFill = 8;
constexpr std::size_t kHeader = 21;  // bytes before the packed elements

ScaleOffset parse(std::span<const std::uint32_t> p) {
  if (p.size() != kParameters) throw std::invalid_argument("scale-offset: unknown parameters");
  ScaleOffset found = {.kind = p[0],
                       .digits = static_cast<int>(p[1]),
                       .elements = p[2],
                       .floats = p[3] == 1,
                       .size = p[4],
                       .big_endian = p[6] == 1,
                       .has_fill = p[7] != 0,
                       .fill = {}};
  std::memcpy(found.fill.data(), &p[kFirstFill], found.fill.size());
  const bool known = found.floats
                         ? found.kind == ScaleOffset::kDecimal && (found.size == 4 || found.size == 8)
                         : found.kind == ScaleOffset::kInteger && found.size <= 8 && std::has_single_bit(found.size);
  if (!known || p[3] > 1) throw std::invalid_argument("scale-offset: unknown parameters");
  return found;
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// In the precision of T, like HDF5; for floats only.
template <class T>
T power_of_ten([[maybe_unused]] int digits) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::pow(T{10}, static_cast<T>(digits));
  } else {
    return T{1};
  }
}

// Numbers of `width` bits, the highest bit first, one after the other.
class BitReader {
 public:
  BitReader(std::span<const std::byte> bytes, unsigned width) : bytes_(bytes), width_(width) {}

  std::uint64_t next() {
    std::uint64_t value = 0;
    for (unsigned missing = width_; missing > 0;) {
      const unsigned left = 8 - used_;
      const unsigned taken = std::min(left, missing);
      const auto byte = std::to_integer<unsigned>(bytes_[at_]);
      value = (value << taken) | ((byte >> (left - taken)) & ((1U << taken) - 1));
      used_ += taken;
      missing -= taken;
      if (used_ == 8) {
        used_ = 0;
        ++at_;
      }
    }
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  unsigned width_;
  std::size_t at_ = 0;
  unsigned used_ = 0;  // bits of the byte at_
};

// T: the elements' type; the bits of an integer are added to the minimum modulo its range.
template <class T>
void expand(const ScaleOffset& of, std::span<const std::byte> packed, unsigned width, const std::byte* minimum,
            std::byte* to) {
  using Integer = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const T scale = power_of_ten<T>(of.digits);
  BitReader bits(packed, width);
  const std::uint64_t missing = (std::uint64_t{1} << width) - 1;  // width < 64
  const T fill = load<T>(of.fill.data());
  for (std::size_t i = 0; i < of.elements; ++i) {
    const std::uint64_t number = width == 0 ? 0 : bits.next();
    T value;
    if (of.has_fill && number == missing) {
      value = fill;
    } else if constexpr (std::is_floating_point_v<T>) {
      value = static_cast<T>(static_cast<Integer>(number)) / scale + load<T>(minimum);
    } else {
      value = static_cast<T>(number + load<std::uint64_t>(minimum));
    }
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

void reverse_bytes(std::span<std::byte> elements, std::size_t size) {
  for (std::size_t i = 0; i + size <= elements.size(); i += size) {
    std::ranges::reverse(elements.subspan(i, size));
  }
}

}  // namespace

void unshuffle(std::span<const std::byte> from, std::size_t item, std::span<std::byte> to) {
  if (from.empty()) return;
  const std::size_t elements = item == 0 ? 0 : from.size() / item;
  const std::size_t whole = elements * item;
  switch (item) {
    case 1:
      std::memcpy(to.data(), from.data(), whole);
      break;
    case 2:
      unshuffle_items<2>(from.data(), elements, to.data());
      break;
    case 4:
      unshuffle_items<4>(from.data(), elements, to.data());
      break;
    case 8:
      unshuffle_items<8>(from.data(), elements, to.data());
      break;
    default:
      unshuffle_any(from.data(), elements, item, to.data());
  }
  std::ranges::copy(from.subspan(whole), to.begin() + static_cast<std::ptrdiff_t>(whole));
}

std::uint32_t fletcher32(std::span<const std::byte> bytes) {
  constexpr std::size_t kWords = 360;  // sums of so many do not overflow
  const auto fold = [](std::uint32_t sum) { return (sum & 0xFFFFU) + (sum >> 16U); };
  std::uint32_t first = 0;
  std::uint32_t second = 0;
  std::size_t at = 0;
  for (std::size_t words = bytes.size() / 2; words > 0;) {
    const std::size_t count = std::min(words, kWords);
    for (std::size_t i = 0; i < count; ++i, at += 2) {
      first += std::to_integer<std::uint32_t>(bytes[at]) << 8U | std::to_integer<std::uint32_t>(bytes[at + 1]);
      second += first;
    }
    words -= count;
    first = fold(first);
    second = fold(second);
  }
  if (at < bytes.size()) {
    first += std::to_integer<std::uint32_t>(bytes[at]) << 8U;
    second += first;
    first = fold(first);
    second = fold(second);
  }
  return fold(second) << 16U | fold(first);
}

void undo_scale_offset(std::span<const std::byte> from, std::span<const std::uint32_t> parameters,
                       std::span<std::byte> to) {
  const ScaleOffset of = parse(parameters);
  if (of.elements > to.size() / of.size || to.size() != of.elements * of.size) {
    throw std::invalid_argument("scale-offset: the chunk has another number of elements");
  }
  if (!of.floats && parameters[1] == 8 * of.size) {  // all bits were asked for: the filter did nothing
    if (from.size() != to.size()) throw std::invalid_argument("scale-offset: the chunk has another size");
    std::ranges::copy(from, to.begin());
    return;
  }
  const auto cut_short = [] { throw std::invalid_argument("scale-offset: the chunk is too short"); };
  if (from.size() < kHeader) cut_short();
  const auto width = load<std::uint32_t>(from.data());
  if (width > 8 * of.size) throw std::invalid_argument("scale-offset: the chunk is damaged");
  const std::byte* const minimum = from.data() + 5;
  const std::span<const std::byte> packed = from.subspan(kHeader);
  // elements * size fits, and so does elements * width in 64 bits.
  if (packed.size() < (of.elements * width + 7) / 8) cut_short();
  if (width == 8 * of.size) {  // stored as they are
    std::ranges::copy(packed.first(to.size()), to.begin());
  } else if (of.floats) {
    of.size == 4 ? expand<float>(of, packed, width, minimum, to.data())
                 : expand<double>(of, packed, width, minimum, to.data());
  } else {
    switch (of.size) {
      case 1:
        expand<std::uint8_t>(of, packed, width, minimum, to.data());
        break;
      case 2:
        expand<std::uint16_t>(of, packed, width, minimum, to.data());
        break;
      case 4:
        expand<std::uint32_t>(of, packed, width, minimum, to.data());
        break;
      default:
        expand<std::uint64_t>(of, packed, width, minimum, to.data());
    }
  }
  if (of.big_endian) reverse_bytes(to, of.size);
}

}  // namespace fastseq
