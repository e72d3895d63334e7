// Recurrent layers beside those on the CPU, forward and backward.
#include "cuda/recurrence_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
#include "device_buffer.h"

namespace fastseq {

namespace {

using cuda::Stream;
using testing::DeviceBuffer;
using testing::same_bits;

using Lengths = std::vector<std::int64_t>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Case {
  RecurrenceShape shape{};
  Lengths lengths;  // none: all steps
  bool biases = true;
  std::int64_t gap = 0;            // between the features of two sequences
  bool gradients_of_y = true;      // else dy is null
  bool gradients_of_state = true;  // else dh and dc are null
  bool wants_x = true;
  bool wants_weights = true;
  bool wants_state = true;
};

// Arrays of a layer, in the order of `sizes`.
enum Array : std::size_t { kX, kWIh, kWHh, kBIh, kBHh, kH0, kC0, kDy, kDh, kDc, kInputs };
enum Result : std::size_t { kY, kH, kC, kDx, kDwIh, kDwHh, kDbIh, kDbHh, kDh0, kDc0, kResults };

std::vector<std::int64_t> input_sizes(const Case& test) {
  const RecurrenceShape& s = test.shape;
  const std::int64_t rows = gate_count(s.cell) * s.hidden;
  const std::int64_t state = s.sequences * s.hidden;
  return {s.steps * s.sequences * (s.inputs + test.gap),
          rows * s.inputs,
          rows * s.hidden,
          rows,
          rows,
          state,
          state,
          s.steps * state,
          state,
          state};
}

std::vector<std::int64_t> result_sizes(const Case& test) {
  const RecurrenceShape& s = test.shape;
  const std::int64_t rows = gate_count(s.cell) * s.hidden;
  const std::int64_t state = s.sequences * s.hidden;
  const auto if_wanted = [](bool wanted, std::int64_t size) { return wanted ? size : 0; };
  const bool lstm = s.cell == Cell::kLstm;
  return {s.steps * state,
          state,
          if_wanted(lstm, state),
          if_wanted(test.wants_x, s.steps * s.sequences * s.inputs),
          if_wanted(test.wants_weights, rows * s.inputs),
          if_wanted(test.wants_weights, rows * s.hidden),
          if_wanted(test.wants_weights && test.biases, rows),
          if_wanted(test.wants_weights && test.biases, rows),
          if_wanted(test.wants_state, state),
          if_wanted(test.wants_state && lstm, state)};
}

// Weights are small enough for gradients to be of order 1. What a sequence has beyond its length must not be read.
template <class T>
std::vector<std::vector<T>> make_inputs(const Case& test) {
  const RecurrenceShape& s = test.shape;
  const std::vector<std::int64_t> sizes = input_sizes(test);
  const double weight = 1 / std::sqrt(static_cast<double>(s.hidden));
  const double size[] = {1, weight, weight, weight, weight, 1, 1, 1, 1, 1};
  std::vector<std::vector<T>> inputs;
  std::uint32_t state = 1;
  for (std::size_t a = 0; a < kInputs; ++a) {
    std::vector<T> values(at(sizes[a]));
    for (T& value : values) {
      state = state * 1664525U + 1013904223U;
      value = T(static_cast<float>(size[a] * (static_cast<double>(state >> 8) / (1 << 23) - 1)));
    }
    inputs.push_back(values);
  }
  for (std::int64_t n = 0; n < std::ssize(test.lengths); ++n) {
    for (std::int64_t t = test.lengths[at(n)]; t < s.steps; ++t) {
      std::fill_n(inputs[kX].begin() + (t * s.sequences + n) * (s.inputs + test.gap), s.inputs, T(std::nanf("")));
    }
  }
  return inputs;
}

RecurrenceInputs inputs_of(const Case& test, const std::vector<const void*>& arrays, const std::int64_t* lengths) {
  const std::int64_t row = test.shape.inputs + test.gap;
  return {.x = arrays[kX],
          .x_step = test.shape.sequences * row,
          .x_sequence = row,
          .w_ih = arrays[kWIh],
          .w_hh = arrays[kWHh],
          .b_ih = test.biases ? arrays[kBIh] : nullptr,
          .b_hh = test.biases ? arrays[kBHh] : nullptr,
          .h0 = arrays[kH0],
          .c0 = arrays[kC0],
          .lengths = test.lengths.empty() ? nullptr : lengths};
}

RecurrenceGradients gradients_of(const Case& test, const std::vector<const void*>& arrays,
                                 const std::vector<void*>& results, const void* saved) {
  const auto wanted = [&](bool want, Result result) { return want ? results[result] : nullptr; };
  return {.y = results[kY],
          .saved = saved,
          .dy = test.gradients_of_y ? arrays[kDy] : nullptr,
          .dh = test.gradients_of_state ? arrays[kDh] : nullptr,
          .dc = test.gradients_of_state ? arrays[kDc] : nullptr,
          .dx = wanted(test.wants_x, kDx),
          .dw_ih = wanted(test.wants_weights, kDwIh),
          .dw_hh = wanted(test.wants_weights, kDwHh),
          .db_ih = wanted(test.wants_weights && test.biases, kDbIh),
          .db_hh = wanted(test.wants_weights && test.biases, kDbHh),
          .dh0 = wanted(test.wants_state, kDh0),
          .dc0 = wanted(test.wants_state, kDc0)};
}

template <class T>
std::vector<std::vector<T>> on_host(const Case& test, const std::vector<std::vector<T>>& inputs) {
  std::vector<const void*> arrays;
  arrays.reserve(kInputs);
  for (const auto& values : inputs) arrays.push_back(values.data());
  std::vector<std::vector<T>> results;
  results.reserve(kResults);
  for (const std::int64_t size : result_sizes(test)) results.emplace_back(at(size), T(7));
  std::vector<void*> to;
  to.reserve(kResults);
  for (auto& values : results) to.push_back(values.data());
  const RecurrenceInputs in = inputs_of(test, arrays, test.lengths.data());
  std::vector<T> saved(at(saved_numel(test.shape)));
  recurrence_forward(test.shape, in, {.y = to[kY], .h = to[kH], .c = to[kC], .saved = saved.data()}, serial_for);
  recurrence_backward(test.shape, in, gradients_of(test, arrays, to, saved.data()), serial_for);
  return results;
}

template <class T>
std::vector<std::vector<T>> on_device(const Case& test, const std::vector<std::vector<T>>& inputs) {
  const Stream stream;
  std::vector<std::unique_ptr<DeviceBuffer<T>>> memory;
  std::vector<const void*> arrays;
  arrays.reserve(kInputs);
  for (const auto& values : inputs) {
    memory.push_back(std::make_unique<DeviceBuffer<T>>(values));
    arrays.push_back(memory.back()->data());
  }
  std::vector<std::unique_ptr<DeviceBuffer<T>>> results;
  std::vector<void*> to;
  to.reserve(kResults);
  for (const std::int64_t size : result_sizes(test)) {
    results.push_back(std::make_unique<DeviceBuffer<T>>(std::vector<T>(at(size), T(7))));
    to.push_back(results.back()->data());
  }
  const DeviceBuffer<std::int64_t> lengths(test.lengths);
  const RecurrenceInputs in = inputs_of(test, arrays, lengths.data());
  using Wide = Accumulate<T>;
  constexpr Wide kNan = std::numeric_limits<Wide>::quiet_NaN();  // what is not written must not be read
  const DeviceBuffer<Wide> saved(std::vector<Wide>(at(cuda::saved_numel(test.shape)), kNan));
  const DeviceBuffer<Wide> scratch(std::vector<Wide>(at(cuda::backward_scratch(test.shape)), kNan));
  cuda::recurrence_forward(test.shape, in, {.y = to[kY], .h = to[kH], .c = to[kC], .saved = saved.data()}, stream);
  cuda::recurrence_backward(test.shape, in, gradients_of(test, arrays, to, saved.data()), scratch.data(), stream);
  std::vector<std::vector<T>> values;
  values.reserve(kResults);
  for (const auto& result : results) values.push_back(result->read(stream));
  return values;
}

template <class To, class From>
std::vector<std::vector<To>> as(const std::vector<std::vector<From>>& arrays) {
  std::vector<std::vector<To>> converted;
  for (const auto& values : arrays) {
    auto& to = converted.emplace_back();
    to.reserve(values.size());
    for (const From& value : values) to.push_back(static_cast<To>(value));
  }
  return converted;
}

// The largest difference, in units of the largest value if that exceeds 1.
template <class A, class B>
double apart(const std::vector<A>& found, const std::vector<B>& wanted) {
  double worst = found.size() == wanted.size() ? 0 : 1e9;
  double largest = 1;
  for (std::size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
    const auto value = static_cast<double>(wanted[i]);
    const double error = std::abs(static_cast<double>(found[i]) - value);
    worst = error <= worst ? worst : error;  // NaN too
    largest = std::max(largest, std::abs(value));
  }
  return worst / largest;
}

template <class T>
void check_layer_of(const Case& test, double tolerance) {
  using Wide = Accumulate<T>;
  const auto inputs = make_inputs<T>(test);
  Case wide = test;
  wide.shape.dtype = test.shape.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const auto wanted = on_host<Wide>(wide, as<Wide>(inputs));
  const auto found = on_device<T>(test, inputs);
  for (std::size_t r = 0; r < kResults; ++r) {
    if (apart(as<Wide>(found)[r], wanted[r]) > tolerance || !(apart(as<Wide>(found)[r], wanted[r]) <= tolerance)) {
      const RecurrenceShape& s = test.shape;
      testing::fail(__FILE__, __LINE__,
                    "result " + std::to_string(r) + " of cell " + std::to_string(static_cast<int>(s.cell)) +
                        ", dtype " + std::to_string(static_cast<int>(s.dtype)) + ", steps " + std::to_string(s.steps) +
                        ", sequences " + std::to_string(s.sequences) + ", inputs " + std::to_string(s.inputs) +
                        ", hidden " + std::to_string(s.hidden) + " is " +
                        std::to_string(apart(as<Wide>(found)[r], wanted[r]) / tolerance) + " tolerances apart");
    }
  }
}

void check_layer(const Case& test) {
  dispatch(test.shape.dtype, [&]<class T>(Type<T>) {
    check_layer_of<T>(test, test.shape.dtype == DType::kFloat64   ? 1e-12
                            : test.shape.dtype == DType::kFloat32 ? 1e-5
                            : test.shape.dtype == DType::kFloat16 ? 2e-3
                                                                  : 2e-2);
  });
}

constexpr Cell kCells[] = {Cell::kLstm, Cell::kGru, Cell::kTanhRnn, Cell::kReluRnn};

RecurrenceShape shape_of(Cell cell, DType dtype, std::int64_t steps, std::int64_t sequences, std::int64_t inputs,
                         std::int64_t hidden, bool reverse) {
  return {.cell = cell,
          .dtype = dtype,
          .steps = steps,
          .sequences = sequences,
          .inputs = inputs,
          .hidden = hidden,
          .reverse = reverse};
}

Lengths mixed(std::int64_t steps, std::int64_t sequences) {
  Lengths lengths;
  for (std::int64_t n = 0; n < sequences; ++n) lengths.push_back((n * 3 + 2) % (steps + 1));
  return lengths;
}

}  // namespace

// A sample of all combinations: each cell with each hidden size; the rest is drawn.
TEST(layers_of_all_sizes) {
  std::mt19937 random(1);  // NOLINT(bugprone-random-generator-seed): the same sample each time
  const auto one_of = [&](std::initializer_list<std::int64_t> values) {
    return values.begin()[random() % values.size()];
  };
  for (const Cell cell : kCells) {
    for (const std::int64_t hidden : {1, 3, 8, 17, 32, 64, 100, 128}) {
      const DType dtype = one_of({0, 1}) == 0 ? DType::kFloat32 : DType::kFloat64;
      const std::int64_t steps = one_of({1, 7});
      const std::int64_t sequences = hidden > 64 ? one_of({1, 2, 5}) : one_of({1, 2, 9});
      const std::int64_t inputs = one_of({1, 5, 33});
      const std::int64_t ends = one_of({0, 1, 2});
      check_layer({.shape = shape_of(cell, dtype, steps, sequences, inputs, hidden, one_of({0, 1}) == 1),
                   .lengths = ends == 0   ? Lengths{}
                              : ends == 1 ? Lengths(at(sequences), steps)
                                          : mixed(steps, sequences),
                   .biases = one_of({0, 1}) == 1,
                   .gap = one_of({0, 3})});
    }
  }
}

TEST(lengths_in_both_directions) {
  for (const Cell cell : kCells) {
    for (const bool reverse : {false, true}) {
      for (const std::int64_t hidden : {5, 65}) {
        for (const Lengths& lengths : {Lengths{0, 4, 2, 1, 3}, Lengths(5, 0), Lengths(5, 2)}) {
          if (hidden == 65 && lengths[1] != 4) continue;
          check_layer({.shape = shape_of(cell, DType::kFloat64, 4, 5, 3, hidden, reverse), .lengths = lengths});
        }
      }
    }
  }
}

TEST(sixteen_bits_are_for_storage) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const Cell cell : kCells) {
      for (const std::int64_t hidden : {17, 70}) {
        check_layer({.shape = shape_of(cell, dtype, 5, 2, 5, hidden, hidden == 70), .lengths = {5, 3}});
      }
    }
  }
}

TEST(gradients_that_are_not_given_or_not_wanted) {
  for (const Cell cell : kCells) {
    for (int missing = 0; missing < 5; ++missing) {
      check_layer({.shape = shape_of(cell, DType::kFloat64, 3, 2, 4, 6, missing % 2 == 1),
                   .lengths = {},
                   .biases = missing != 3,
                   .gradients_of_y = missing != 0,
                   .gradients_of_state = missing != 1,
                   .wants_x = missing != 2,
                   .wants_weights = missing != 3,
                   .wants_state = missing != 4});
    }
  }
}

TEST(layers_without_steps_sequences_or_inputs) {
  for (const Cell cell : kCells) {
    check_layer({.shape = shape_of(cell, DType::kFloat64, 0, 2, 3, 4, false), .lengths = {}});
    check_layer({.shape = shape_of(cell, DType::kFloat64, 2, 0, 3, 4, false), .lengths = {}});
    check_layer({.shape = shape_of(cell, DType::kFloat64, 2, 3, 0, 4, true), .lengths = {2, 0, 1}});
  }
}

// The weights' gradients in several parts, the last of which is shorter.
TEST(many_steps) {
  check_layer({.shape = shape_of(Cell::kGru, DType::kFloat64, 61, 7, 2, 3, true), .lengths = mixed(61, 7)});
  check_layer({.shape = shape_of(Cell::kLstm, DType::kFloat32, 300, 1, 3, 4, false), .lengths = {}});
}

TEST(more_sequences_than_other_dimensions_of_a_grid_take) {
  check_layer({.shape = shape_of(Cell::kTanhRnn, DType::kFloat32, 1, 65'600, 1, 1, false), .lengths = {}});
}

TEST(equal_calls_give_equal_bits) {
  for (const std::int64_t hidden : {9, 66}) {
    const Case test{.shape = shape_of(Cell::kLstm, DType::kFloat32, 40, 7, 3, hidden, false), .lengths = mixed(40, 7)};
    const auto inputs = make_inputs<float>(test);
    const auto once = on_device(test, inputs);
    const auto again = on_device(test, inputs);
    for (std::size_t r = 0; r < kResults; ++r) CHECK(same_bits(once[r], again[r]));
  }
}

// Lengths are on the device: a wrong one shows in the results of its sequence, and no memory is touched beyond them.
TEST(wrong_lengths_make_nan) {
  for (const Cell cell : kCells) {
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{4}, std::numeric_limits<std::int64_t>::max()}) {
      const Case test{.shape = shape_of(cell, DType::kFloat32, 3, 2, 2, 4, wrong < 0), .lengths = {3, 3}};
      const auto inputs = make_inputs<float>(test);
      Case bad = test;
      bad.lengths[1] = wrong;
      const auto wanted = on_device(test, inputs);
      const auto found = on_device(bad, inputs);
      for (std::size_t i = 0; i < found[kH].size(); ++i) {
        CHECK(i < 4 ? found[kH][i] == wanted[kH][i] : std::isnan(found[kH][i]));
        CHECK(i < 4 ? found[kDh0][i] == wanted[kDh0][i] : std::isnan(found[kDh0][i]));
      }
    }
  }
}

TEST(refuses_what_it_cannot_do) {
  for (const std::int64_t hidden : {0, 129}) {
    const RecurrenceShape shape = shape_of(Cell::kLstm, DType::kFloat32, 1, 1, 1, hidden, false);
    CHECK_THROWS(cuda::recurrence_forward(shape, {}, {}, nullptr), std::invalid_argument);
    CHECK_THROWS(cuda::recurrence_backward(shape, {}, {}, nullptr, nullptr), std::invalid_argument);
  }
}

}  // namespace fastseq
