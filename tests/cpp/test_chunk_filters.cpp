// HDF5's filters undone, beside plain loops; and on bytes that no filter wrote.
#include "core/reader/chunk_filters.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "check.h"

namespace fastseq {

namespace {

using Bytes = std::vector<std::byte>;

// Numbers that look random, the same ones on every machine.
struct Random {
  std::uint32_t state;
  std::uint32_t operator()() {
    state = state * 1664525U + 1013904223U;
    return state >> 8 ^ state << 16;
  }
};

Bytes random_bytes(Random& random, std::size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() % 256);
  return bytes;
}

// A chunk of int32: the parameters of its filter, and its bytes.
struct Packed {
  std::vector<std::uint32_t> parameters;
  Bytes bytes;
};

Packed pack(const std::vector<std::int32_t>& values, unsigned width) {
  const std::int32_t least = *std::ranges::min_element(values);
  Packed packed = {.parameters = std::vector<std::uint32_t>(20), .bytes = Bytes(21 + (values.size() * width + 7) / 8)};
  packed.parameters[0] = 2;  // integers
  packed.parameters[2] = static_cast<std::uint32_t>(values.size());
  packed.parameters[4] = 4;
  packed.parameters[5] = 1;
  std::memcpy(packed.bytes.data(), &width, 4);
  const std::int64_t wide = least;
  std::memcpy(packed.bytes.data() + 5, &wide, 8);
  std::size_t bit = 8 * std::size_t{21};
  for (const std::int32_t value : values) {
    for (unsigned i = width; i-- > 0; ++bit) {
      const std::uint32_t offset = static_cast<std::uint32_t>(value) - static_cast<std::uint32_t>(least);
      if ((offset >> i & 1U) != 0) packed.bytes[bit / 8] |= std::byte{0x80} >> (bit % 8);
    }
  }
  return packed;
}

}  // namespace

TEST(unshuffle_puts_the_bytes_of_an_element_together) {
  Random random{0};
  for (const std::size_t item : {1U, 2U, 3U, 4U, 8U, 12U}) {
    for (const std::size_t size : {0U, 1U, 7U, 64U, 4096U, 50001U}) {
      const Bytes data = random_bytes(random, size);
      const std::size_t elements = size / item;
      Bytes shuffled = data;
      for (std::size_t i = 0; i < elements; ++i) {
        for (std::size_t j = 0; j < item; ++j) shuffled[j * elements + i] = data[i * item + j];
      }
      Bytes found(size);
      unshuffle(shuffled, item, found);
      CHECK(found == data);
    }
  }
}

TEST(fletcher32_is_the_sum_of_sums) {
  // The published sums are of little-endian words: here, the bytes of each word are swapped.
  const auto sum = [](std::string_view text) { return fletcher32(std::as_bytes(std::span(text))); };
  CHECK_EQ(sum(""), 0U);
  CHECK_EQ(sum("badcfehg"), 0xEBE19591U);  // of "abcdefgh"
  Random random{1};
  for (const std::size_t size : {1U, 2U, 719U, 720U, 721U, 5000U}) {
    const Bytes data = random_bytes(random, size);
    std::uint64_t first = 0;
    std::uint64_t second = 0;
    for (std::size_t i = 0; i < size; i += 2) {
      const auto high = std::to_integer<std::uint64_t>(data[i]);
      const auto low = i + 1 < size ? std::to_integer<std::uint64_t>(data[i + 1]) : 0;
      first = (first + high * 256 + low) % 65535;
      second = (second + first) % 65535;
    }
    const std::uint32_t found = fletcher32(data);
    CHECK_EQ(found % 65536 % 65535, first);
    CHECK_EQ(found / 65536 % 65535, second);
  }
}

TEST(scale_offset_of_every_width) {
  Random random{2};
  for (unsigned width = 0; width < 32; ++width) {
    std::vector<std::int32_t> values(37);
    for (std::int32_t& value : values) {
      const std::uint64_t range = std::uint64_t{1} << width;
      value = static_cast<std::int32_t>(-1000 + static_cast<std::int64_t>(random() % range));
    }
    const Packed packed = pack(values, width);
    std::vector<std::int32_t> found(values.size());
    undo_scale_offset(packed.bytes, packed.parameters, std::as_writable_bytes(std::span(found)));
    CHECK(found == values);
    Bytes cut = packed.bytes;
    cut.pop_back();
    if (width > 0) {
      CHECK_THROWS(undo_scale_offset(cut, packed.parameters, std::as_writable_bytes(std::span(found))),
                   std::invalid_argument);
    }
  }
}

TEST(what_no_filter_wrote_is_refused_or_read_within_its_bounds) {
  Random random{3};
  int refused = 0;
  constexpr int kCases = 20000;
  for (int i = 0; i < kCases; ++i) {
    std::vector<std::uint32_t> parameters(random() % 8 == 0 ? random() % 24 : 20);
    for (std::uint32_t& parameter : parameters) {
      parameter = random() % 4 == 0 ? random() : random() % 9;
    }
    Bytes out(random() % 100);
    if (parameters.size() == 20 && random() % 2 == 0) {
      parameters[0] = 2 * (random() % 2);
      parameters[3] = 1 - parameters[0] / 2;
      parameters[4] = 4;
      out.resize(std::size_t{4} * (parameters[2] % 25));
      parameters[2] %= 25;
    }
    Bytes bytes = random_bytes(random, random() % 150);
    if (bytes.size() > 4) std::ranges::fill(bytes.begin() + 1, bytes.begin() + 4, std::byte{0});
    try {
      undo_scale_offset(bytes, parameters, out);
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  CHECK(refused > kCases / 10);
  CHECK(refused < kCases);
}

}  // namespace fastseq
