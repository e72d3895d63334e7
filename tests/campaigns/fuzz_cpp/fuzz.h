// What fuzzers share: numbers drawn from the bytes of an input, and demands on what comes of them.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/half.h"
#include "core/base/isa.h"
#include "core/base/parallel.h"

namespace fastseq::fuzz {

// Ends the process, which libFuzzer takes for a crash, unless a promise holds.
inline void demand(bool holds, const char* promise) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", promise);
  std::abort();
}

// The arguments of a call, from an input.
class Draw {
 public:
  Draw(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {}

  std::int64_t between(std::int64_t least, std::int64_t most) {
    return bytes_.ConsumeIntegralInRange<std::int64_t>(least, most);
  }
  bool yes() { return bytes_.ConsumeBool(); }
  // Any number, but often a small one or one at an edge of its type.
  std::int64_t any() {
    static constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    switch (between(0, 7)) {
      case 0:
        return bytes_.ConsumeIntegral<std::int64_t>();
      case 1:
        return kMost - between(0, 64);
      case 2:
        return -kMost - 1 + between(0, 64);
      case 3:
        return (std::int64_t{1} << between(0, 62)) + between(-2, 2);
      default:
        return between(-3, 100);
    }
  }
  template <class T, std::size_t kCount>
  T of(const std::array<T, kCount>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(kCount) - 1))];
  }
  std::uint32_t seed() { return bytes_.ConsumeIntegral<std::uint16_t>(); }
  // The width of vectors from now on.
  void width() { vector_limit = of(std::array{16, 32, 64}); }

 private:
  FuzzedDataProvider bytes_;
};

// Numbers that look random.
class Noise {
 public:
  explicit Noise(std::uint32_t seed) : state_(seed * 2654435761U + 1) {}

  std::uint32_t bits() {
    state_ = state_ * 1664525U + 1013904223U;
    return state_ >> 8;
  }
  std::int64_t below(std::int64_t limit) { return static_cast<std::int64_t>(bits()) % limit; }
  // Between -1 and 1.
  double number() { return static_cast<double>(bits()) / (1 << 23) - 1; }
  std::vector<double> numbers(std::int64_t count, double size = 1) {
    std::vector<double> found(static_cast<std::size_t>(count));
    for (double& each : found) each = size * number();
    return found;
  }

 private:
  std::uint32_t state_;
};

inline constexpr std::array kDTypes = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};

template <class T>
double to_double(T value) {
  if constexpr (std::is_same_v<T, double>) {
    return value;
  } else {
    return static_cast<double>(static_cast<float>(value));
  }
}

inline bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

// Ranges of two indices, the last first, whatever the grain.
inline void backwards_for(std::int64_t count, std::int64_t /*grain*/, RangeBody body, void* context) {
  for (std::int64_t begin = (count - 1) / 2 * 2; count > 0 && begin >= 0; begin -= 2) {
    body(begin, std::min(begin + 2, count), context);
  }
}
inline constexpr std::array<ParallelFor, 2> kParallelFors = {serial_for, backwards_for};

// Whether the call ends in the error that is documented for wrong arguments.
template <class Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

}  // namespace fastseq::fuzz
