// Numbers that look random, the same ones on every machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastseq::testing {

// Between -size and size.
template <class T = double>
std::vector<T> noise(std::int64_t numel, std::uint32_t seed, double size = 1) {
  std::vector<T> values(static_cast<std::size_t>(numel));
  std::uint32_t state = seed * 2654435761U + 1;
  for (T& value : values) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<T>(size * (static_cast<double>(state >> 8) / (1 << 23) - 1));
  }
  return values;
}

}  // namespace fastseq::testing
