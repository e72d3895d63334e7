// Conversions of rows of any types, byte orders and strides, against one element after another.
#include "core/base/elements.h"

#include <cstring>

#include "fuzz.h"

namespace fastseq {

namespace {

constexpr int kTypes = static_cast<int>(ElementType::kFloat64) + 1;

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// Calls fn with the element as a number of its type.
template <class Fn>
auto visit(const std::byte* bytes, ElementType type, const Fn& fn) {
  switch (type) {
    case ElementType::kBool:
      return fn(static_cast<std::uint8_t>(load<std::uint8_t>(bytes) != 0 ? 1 : 0));
    case ElementType::kInt8:
      return fn(load<std::int8_t>(bytes));
    case ElementType::kUInt8:
      return fn(load<std::uint8_t>(bytes));
    case ElementType::kInt16:
      return fn(load<std::int16_t>(bytes));
    case ElementType::kUInt16:
      return fn(load<std::uint16_t>(bytes));
    case ElementType::kInt32:
      return fn(load<std::int32_t>(bytes));
    case ElementType::kUInt32:
      return fn(load<std::uint32_t>(bytes));
    case ElementType::kInt64:
      return fn(load<std::int64_t>(bytes));
    case ElementType::kUInt64:
      return fn(load<std::uint64_t>(bytes));
    case ElementType::kFloat16:
      return fn(static_cast<float>(load<Float16>(bytes)));
    case ElementType::kBFloat16:
      return fn(static_cast<float>(load<BFloat16>(bytes)));
    case ElementType::kFloat32:
      return fn(load<float>(bytes));
    case ElementType::kFloat64:
      return fn(load<double>(bytes));
  }
  std::abort();
}

bool is_float(ElementType type) { return type >= ElementType::kFloat16; }

double wide(const std::byte* bytes, ElementType type) {
  return visit(bytes, type, [](auto value) { return static_cast<double>(value); });
}

double narrowed(float value, ElementType type) {
  if (type == ElementType::kFloat16) return static_cast<float>(Float16(value));
  if (type == ElementType::kBFloat16) return static_cast<float>(BFloat16(value));
  return value;
}

struct Rows {
  Conversion conversion;
  std::int64_t rows;
  std::int64_t numel;
  std::int64_t from_stride;
  std::int64_t to_stride;
  bool scaled;
};

// Checks an element; returns whether it counts as not finite.
bool check(const Rows& r, const std::byte* from, const std::byte* to, std::int64_t feature) {
  const Conversion& c = r.conversion;
  const auto size = element_size(c.from);
  std::array<std::byte, 8> element{};
  std::memcpy(element.data(), from, size);
  if (c.swapped) std::reverse(element.begin(), element.begin() + static_cast<std::ptrdiff_t>(size));
  const double value = wide(element.data(), c.from);
  if (c.to == ElementType::kBool) {
    fuzz::demand(load<std::uint8_t>(to) == (value != 0 ? 1 : 0), "bool");
    return is_float(c.from) && !std::isfinite(value);
  }
  if (c.to == ElementType::kInt64) {
    const auto whole =
        c.from == ElementType::kUInt64 ? load<std::int64_t>(element.data())
        : is_float(c.from)
            ? 0
            : visit(element.data(), c.from, [](auto number) {
                return std::is_integral_v<decltype(number)> ? static_cast<std::int64_t>(number) : std::int64_t{0};
              });
    fuzz::demand(load<std::int64_t>(to) == whole, "int64");
    return false;
  }
  double wanted = value;
  if (r.scaled) {
    if (c.center != nullptr) wanted -= c.center[feature];
    if (c.inverse != nullptr) wanted *= c.inverse[feature];
  }
  if (c.to != ElementType::kFloat64) {
    const float once = r.scaled ? static_cast<float>(wanted)
                                : visit(element.data(), c.from, [](auto number) { return static_cast<float>(number); });
    wanted = narrowed(once, c.to);
  }
  fuzz::demand(fuzz::same(wide(to, c.to), wanted), "a float");
  return !std::isfinite(wanted);
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  Rows r{};
  Conversion& c = r.conversion;
  c.from = static_cast<ElementType>(draw.between(0, kTypes - 1));
  c.to = static_cast<ElementType>(draw.between(0, kTypes - 1));
  c.swapped = draw.yes();
  c.features = draw.yes() ? draw.between(1, 5) : draw.any() % 4096;
  const auto features = static_cast<std::size_t>(std::max<std::int64_t>(c.features, 0));
  fuzz::Noise noise(draw.seed());
  const std::vector<double> center = noise.numbers(static_cast<std::int64_t>(features), 3);
  const std::vector<double> inverse = noise.numbers(static_cast<std::int64_t>(features), 2);
  const double none = 0;  // where there are no features, still an address
  if (draw.yes()) c.center = features == 0 ? &none : center.data();
  if (draw.yes()) c.inverse = features == 0 ? &none : inverse.data();
  r.scaled = c.center != nullptr || c.inverse != nullptr;
  const bool to_float = is_float(c.to);
  const bool valid =
      to_float ? !r.scaled || c.features >= 1
               : !r.scaled && (c.to == ElementType::kBool || (c.to == ElementType::kInt64 && !is_float(c.from)));
  std::vector<ElementConverter> made;
  if (fuzz::refuses([&] { made.emplace_back(c); })) {
    fuzz::demand(!valid, "a conversion that exists is not refused");
    return 0;
  }
  fuzz::demand(valid, "other conversions are refused");
  const ElementConverter& convert = made.front();
  const auto from_size = static_cast<std::int64_t>(element_size(c.from));
  const auto to_size = static_cast<std::int64_t>(element_size(c.to));
  r.rows = draw.between(0, 12);
  r.numel = draw.yes() ? draw.between(0, 9) : draw.between(0, 700);
  r.from_stride = r.numel * from_size + (draw.yes() ? draw.between(0, 9) : 0);
  r.to_stride = (r.numel + (draw.yes() ? draw.between(0, 3) : 0)) * to_size;
  const std::int64_t shift = draw.between(0, 7);  // sources may be unaligned
  const bool special = draw.yes();
  const auto length = [&](std::int64_t stride, std::int64_t row) {
    return static_cast<std::size_t>(r.rows == 0 ? 0 : (r.rows - 1) * stride + row);
  };
  std::vector<std::byte> from(length(r.from_stride, r.numel * from_size) + static_cast<std::size_t>(shift));
  static constexpr std::array<unsigned, 6> kSpecial = {0x00, 0xff, 0x7f, 0x80, 0x7c, 0xf0};
  for (std::byte& byte : from) {
    byte = static_cast<std::byte>(special ? kSpecial[static_cast<std::size_t>(noise.below(6))] : noise.bits() & 0xffU);
  }
  std::vector<std::byte> to(length(r.to_stride, r.numel * to_size), std::byte{0x5a});
  const std::int64_t count =
      convert.convert_rows(from.data() + shift, r.from_stride, r.rows, r.numel, to.data(), r.to_stride);
  std::int64_t wanted = 0;
  for (std::int64_t i = 0; i < r.rows; ++i) {
    const std::byte* row = from.data() + shift + i * r.from_stride;
    const std::byte* out = to.data() + i * r.to_stride;
    for (std::int64_t j = 0; j < r.numel; ++j) {
      wanted += check(r, row + j * from_size, out + j * to_size, c.features > 0 ? j % c.features : 0) ? 1 : 0;
    }
    const std::int64_t gap = i + 1 < r.rows ? r.to_stride - r.numel * to_size : 0;
    for (std::int64_t j = 0; j < gap; ++j) {
      fuzz::demand(out[r.numel * to_size + j] == std::byte{0x5a}, "gaps between rows stay");
    }
  }
  fuzz::demand(count == wanted, "the number of non-finite values");
  return 0;
}
