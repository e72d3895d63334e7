// What the micro-benchmarks share: cases that check their answer before they are timed, and the circumstances of a run.
#pragma once

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"

namespace fastseq::bench {

using Call = std::function<void()>;

// What a call must read and write at least, and its operations of arithmetic; 0: not counted.
struct Work {
  double bytes = 0;
  double operations = 0;
};

// Times a call, in each iteration.
using Timer = std::function<void(benchmark::State& state, const Call& call)>;
void time_calls(benchmark::State& state, const Call& call);

// Adds a case. `make` prepares it, raises if its answer is wrong, and returns the call to be timed. That happens once,
// right before the case is timed, though the library measures it several times.
benchmark::internal::Benchmark* add(const std::string& name, Work work, std::function<Call()> make,
                                    Timer timer = time_calls);

// Adds cases and runs those that the command line selects; only a rank that `reports` prints and writes. Returns the
// exit status.
int run(const std::function<void()>& add_cases, int argc, char** argv, bool reports = true);

// Raises std::runtime_error unless `right`.
inline void require(bool right, std::string_view what) {
  if (!right) throw std::runtime_error("wrong answer: " + std::string(what));
}

// Numbers between -1 and 1, the same every time.
template <class T>
std::vector<T> noise(std::int64_t numel, std::uint32_t seed) {
  std::vector<T> values(static_cast<std::size_t>(numel));
  std::uint32_t state = seed * 2654435761U + 1;
  for (T& value : values) {
    state = state * 1664525U + 1013904223U;
    value = T(static_cast<float>(state >> 8) / (1 << 23) - 1);
  }
  return values;
}

// Lists of tensors, by their numbers of elements.
std::vector<std::int64_t> many_small_tensors();
std::vector<std::int64_t> transformer(int layers);  // of d 512 and d_ff 2048: 12.6 MB each in fp32

const char* name_of(DType dtype);

}  // namespace fastseq::bench
