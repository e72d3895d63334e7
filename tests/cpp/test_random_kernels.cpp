// Features of random kernels: against integer arithmetic, and the same bits for every width and number of threads.
#include "core/convolution/random_kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "ranges.h"

namespace fastseq {

namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

class Numbers {
 public:
  explicit Numbers(std::uint32_t seed) : state_(seed * 2654435761U + 1) {}

  std::int64_t below(std::int64_t limit) {
    state_ = state_ * 1664525U + 1013904223U;
    return static_cast<std::int64_t>(state_ >> 8) % limit;
  }

 private:
  std::uint32_t state_;
};

// Small integers, and thresholds between the possible results.
template <class T>
struct Data {
  RandomKernelsShape shape;
  std::vector<T> x;
  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> dilations;
  std::vector<std::int64_t> members;
  std::vector<T> thresholds;

  Data(const RandomKernelsShape& s, bool ragged)
      : shape(s),
        x(at(s.steps * s.sequences * s.features)),
        dilations(at(s.groups)),
        members(at(s.groups * s.members)),
        thresholds(at(s.groups * kKernelChoices)) {
    Numbers numbers(7);
    for (T& value : x) value = static_cast<T>(numbers.below(41) - 20);
    for (auto& dilation : dilations) dilation = 1 + numbers.below(std::max<std::int64_t>(s.steps / 4, 1));
    for (auto& f : members) f = numbers.below(s.features + 1);
    for (T& threshold : thresholds) threshold = (static_cast<T>(numbers.below(81) - 40) + T(0.5)) / 3;
    if (!ragged) return;
    for (std::int64_t n = 0; n < s.sequences; ++n) {
      lengths.push_back(numbers.below(s.steps + 1));
      for (std::int64_t i = lengths.back() * s.sequences; i < s.steps * s.sequences; i += s.sequences) {
        for (std::int64_t f = 0; f < s.features; ++f) {  // never read
          x[at((i + n) * s.features + f)] = std::numeric_limits<T>::quiet_NaN();
        }
      }
    }
  }

  std::vector<T> run(ParallelFor parallel_for) const {
    std::vector<T> out(at(shape.sequences * shape.groups * kKernelChoices + 1), T{99});
    random_kernels(shape,
                   {.x = x.data(),
                    .x_step = shape.sequences * shape.features,
                    .x_sequence = shape.features,
                    .lengths = lengths.empty() ? nullptr : lengths.data(),
                    .dilations = dilations.data(),
                    .members = members.data(),
                    .thresholds = thresholds.data()},
                   out.data(), parallel_for);
    CHECK_EQ(out.back(), T{99});  // nothing behind was written
    out.pop_back();
    return out;
  }

  std::int64_t length(std::int64_t n) const { return lengths.empty() ? shape.steps : lengths[at(n)]; }

  // The sum of a group's features at a step; 0 outside of the sequence.
  std::int64_t sum(std::int64_t n, std::int64_t g, std::int64_t t) const {
    if (t < 0 || t >= length(n)) return 0;
    std::int64_t found = 0;
    for (std::int64_t m = 0; m < shape.members; ++m) {
      const std::int64_t f = members[at(g * shape.members + m)];
      if (f < shape.features) found += std::lround(x[at((t * shape.sequences + n) * shape.features + f)]);
    }
    return found;
  }

  std::vector<T> expected() const {
    std::vector<std::array<int, 3>> choices;
    for (int a = 0; a < kKernelTaps; ++a) {
      for (int b = a + 1; b < kKernelTaps; ++b) {
        for (int c = b + 1; c < kKernelTaps; ++c) choices.push_back({a, b, c});
      }
    }
    std::vector<T> found;
    for (std::int64_t n = 0; n < shape.sequences; ++n) {
      const std::int64_t all = std::max(length(n), shape.least_steps);
      for (std::int64_t g = 0; g < shape.groups; ++g) {
        for (std::size_t k = 0; k < choices.size(); ++k) {
          std::int64_t above = 0;
          for (std::int64_t t = 0; t < all; ++t) {
            std::int64_t convolved = 0;
            for (int j = 0; j < kKernelTaps; ++j) {
              const bool chosen = std::ranges::find(choices[k], j) != choices[k].end();
              convolved += (chosen ? 2 : -1) * sum(n, g, t + (j - 4) * dilations[at(g)]);
            }
            const T threshold = thresholds[at(g * kKernelChoices) + k];
            above += static_cast<double>(convolved) > 3 * static_cast<double>(threshold) ? 1 : 0;
          }
          found.push_back(static_cast<T>(above) / static_cast<T>(all));
        }
      }
    }
    return found;
  }
};

template <class T>
void check_counts(DType dtype) {
  for (const std::int64_t steps : {0, 1, 3, 8, 15, 16, 17, 33, 70}) {
    for (const std::int64_t least : {std::int64_t{1}, steps + 1, 2 * steps + 40}) {
      for (const bool ragged : {false, true}) {
        const Data<T> data({.dtype = dtype,
                            .steps = steps,
                            .sequences = 3,
                            .features = 1 + steps % 3,
                            .groups = 2,
                            .members = 2,
                            .least_steps = least},
                           ragged);
        const std::vector<T> expected = data.expected();
        testing::for_every_width([&] { CHECK(data.run(serial_for) == expected); });
      }
    }
  }
}

}  // namespace

TEST(counts_float32) { check_counts<float>(DType::kFloat32); }
TEST(counts_float64) { check_counts<double>(DType::kFloat64); }

// Thresholds are results at some steps, so that rounding decides whether others are above them.
TEST(every_width_and_all_threads_give_the_same_bits) {
  Data<float> data({.dtype = DType::kFloat32,
                    .steps = 90,
                    .sequences = 17,
                    .features = 1,
                    .groups = 1,
                    .members = 1,
                    .least_steps = 60},
                   true);
  data.members = {0};
  data.dilations = {2};
  data.lengths[0] = 90;
  for (std::int64_t t = 0; t < 90; ++t) {
    for (std::int64_t n = 0; n < 17; ++n) data.x[at(t * 17 + n)] = static_cast<float>((t * 7 + n) % 5) * 0.1F;
  }
  std::size_t kernel = 0;
  for (int a = 0; a < kKernelTaps; ++a) {
    for (int b = a + 1; b < kKernelTaps; ++b) {
      for (int c = b + 1; c < kKernelTaps; ++c, ++kernel) {
        const auto tap = [&](int j) {
          return data.x[(20 + kernel % 40 + 2 * static_cast<std::size_t>(j)) * 17];  // of sequence 0
        };
        volatile float sum = tap(0);  // nothing is fused
        for (int j = 1; j < kKernelTaps; ++j) sum = sum + tap(j);
        volatile float result = sum * (-1.0F / 3.0F);
        for (const int j : {a, b, c}) result = result + tap(j);
        data.thresholds[kernel] = result;
      }
    }
  }
  const std::vector<float> expected = data.run(serial_for);
  testing::for_every_width([&] {
    for (const ParallelFor parallel_for : testing::parallel_fors()) CHECK(data.run(parallel_for) == expected);
  });
}

TEST(values_that_are_not_finite_show) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Data<float> data({.dtype = DType::kFloat32,
                      .steps = 20,
                      .sequences = 2,
                      .features = 2,
                      .groups = 2,
                      .members = 1,
                      .least_steps = 20},
                     false);
    data.members = {0, 1};
    const std::vector<float> before = data.run(serial_for);
    data.x[(13 * 2 + 1) * 2] = bad;  // of sequence 1, feature 0
    const std::vector<float> after = data.run(serial_for);
    for (std::size_t i = 0; i < before.size(); ++i) {
      const bool sees = i >= 2 * kKernelChoices && i < 3 * kKernelChoices;
      CHECK(sees ? std::isnan(after[i]) : after[i] == before[i]);
    }
  }
}

// Behind a sequence that is followed by nearly endless zeros, only the sign of the threshold counts.
TEST(least_steps_may_be_any_number) {
  for (const std::int64_t least : {std::int64_t{1} << 62, std::numeric_limits<std::int64_t>::max()}) {
    const Data<double> data({.dtype = DType::kFloat64,
                             .steps = 9,
                             .sequences = 2,
                             .features = 1,
                             .groups = 1,
                             .members = 1,
                             .least_steps = least},
                            false);
    const std::vector<double> found = data.run(serial_for);
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(std::abs(found[i] - (data.thresholds[i % kKernelChoices] < 0 ? 1 : 0)) < 1e-9);
    }
  }
}

TEST(nothing_to_do) {
  const Data<float> data({.dtype = DType::kFloat32,
                          .steps = 9,
                          .sequences = 0,
                          .features = 1,
                          .groups = 1,
                          .members = 1,
                          .least_steps = 9},
                         false);
  CHECK(data.run(serial_for).empty());
}

}  // namespace fastseq
