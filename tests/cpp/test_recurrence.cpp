// Recurrent layers against plain loops in double precision, and their gradients against finite differences.
#include "core/recurrence/recurrence.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "noise.h"
#include "plain_recurrence.h"
#include "ranges.h"

namespace fastseq {

namespace {

using namespace testing;
using testing::apart;

Data make_data(const RecurrenceShape& s) {
  const std::int64_t rows = gate_count(s.cell) * s.hidden;
  const std::int64_t states = s.sequences * s.hidden;
  const double size = std::min(0.5, 2 / std::sqrt(static_cast<double>(s.inputs + s.hidden)));  // few sums saturate
  return {.x = noise(s.steps * s.sequences * s.inputs, 1, 1),
          .w_ih = noise(rows * s.inputs, 2, size),
          .w_hh = noise(rows * s.hidden, 3, size),
          .b_ih = noise(rows, 4, size),
          .b_hh = noise(rows, 5, size),
          .h0 = noise(states, 6, 1),
          .c0 = noise(states, 7, 1),
          .dy = noise(s.steps * states, 8, 1),
          .dh = noise(states, 9, 1),
          .dc = noise(states, 10, 1)};
}

Values difference_quotients(const Case& test, const Data& data, Values Data::* member) {
  constexpr double kStep = 1e-5;
  Data moved = data;
  Values quotients;
  quotients.reserve((data.*member).size());
  for (double& value : moved.*member) {
    const double middle = value;
    value = middle + kStep;
    const double above = plain_loss(test, moved);
    value = middle - kStep;
    quotients.push_back((above - plain_loss(test, moved)) / (2 * kStep));
    value = middle;
  }
  return quotients;
}

Case single(Case test) {
  test.shape.dtype = DType::kFloat32;
  return test;
}

Case mixed(Case test) {
  test.shape.dtype = DType::kFloat32;
  test.shape.bf16 = true;
  return test;
}

// Factors are rounded to 8 bits: each of the few dozen products of a sum is off by up to 2^-7 of itself, most by less,
// to both sides.
constexpr double kMixedTolerance = 0.02;

void check_forward_of_this_width(const Case& test) {
  const Data data = make_data(test.shape);
  const State wanted = plain_forward(test, data);
  const auto check = [&](const auto& found, double tolerance) {
    CHECK(apart(found.y, wanted.y) <= tolerance);
    CHECK(apart(found.h, wanted.h) <= tolerance);
    if (test.shape.cell == Cell::kLstm) CHECK(apart(found.c, wanted.c) <= tolerance);
  };
  check(run<double>(test, data, serial_for), 1e-12);
  check(run<float>(single(test), data, serial_for), 2e-5);
  check(run<float>(mixed(test), data, serial_for), kMixedTolerance);
}

void check_forward(const Case& test) {
  testing::for_every_width([&] { check_forward_of_this_width(test); });
}

// The loss's slope as one of its inputs moves in a direction.
struct Slope {
  Values direction;
  double slope;
};

Slope slope_of(const Case& test, const Data& data, Values Data::* member) {
  constexpr double kStep = 1e-6;
  const Values direction = noise(static_cast<std::int64_t>((data.*member).size()), 11, 1);
  const auto loss_at = [&](double distance) {
    Data moved = data;
    for (std::size_t i = 0; i < direction.size(); ++i) (moved.*member)[i] += distance * direction[i];
    return plain_loss(test, moved);
  };
  return {.direction = direction, .slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep)};
}

// How far a gradient's product with the direction is from the slope, in units of the gradient's size.
template <class T>
double apart(const std::vector<T>& gradient, const Slope& wanted) {
  double product = 0;
  double squares = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    product += wanted.direction[i] * static_cast<double>(gradient[i]);
    squares += static_cast<double>(gradient[i]) * static_cast<double>(gradient[i]);
  }
  return std::abs(product - wanted.slope) / std::sqrt(squares);
}

// Compares gradients with what `wanted(member)` says of those of an input, in fp64, in fp32 and with factors in bf16.
template <class Wanted>
void check_gradients(const Case& test, const Data& data, const Wanted& wanted, double tolerance, double of_single,
                     double of_mixed) {
  const auto dx = wanted(&Data::x);
  const auto dw_ih = wanted(&Data::w_ih);
  const auto dw_hh = wanted(&Data::w_hh);
  const auto db_ih = wanted(&Data::b_ih);
  const auto db_hh = wanted(&Data::b_hh);
  const auto dh0 = wanted(&Data::h0);
  const auto dc0 = wanted(&Data::c0);
  const auto check = [&](const auto& found, double most) {
    CHECK(apart(found.dx, dx) <= most);
    CHECK(apart(found.dw_ih, dw_ih) <= most);
    CHECK(apart(found.dw_hh, dw_hh) <= most);
    CHECK(apart(found.db_ih, db_ih) <= most);
    CHECK(apart(found.db_hh, db_hh) <= most);
    CHECK(apart(found.dh0, dh0) <= most);
    if (test.shape.cell == Cell::kLstm) CHECK(apart(found.dc0, dc0) <= most);
  };
  testing::for_every_width([&] {
    check(run<double>(test, data, serial_for), tolerance);
    check(run<float>(single(test), data, serial_for), of_single);
    check(run<float>(mixed(test), data, serial_for), of_mixed);
  });
}

void check_backward(const Case& test) {
  const Data data = make_data(test.shape);
  const auto quotients = [&](Values Data::* member) { return difference_quotients(test, data, member); };
  check_gradients(test, data, quotients, 1e-7, 1e-3, 3 * kMixedTolerance);
}

// Like check_backward, for layers with too many inputs to move each of them.
void check_slopes(const Case& test) {
  const Data data = make_data(test.shape);
  const auto slopes = [&](Values Data::* member) { return slope_of(test, data, member); };
  check_gradients(test, data, slopes, 1e-6, 1e-4, kMixedTolerance);
}

constexpr Cell kCells[] = {Cell::kLstm, Cell::kGru, Cell::kTanhRnn, Cell::kReluRnn};

Case make_case(Cell cell, std::int64_t steps, std::int64_t sequences, std::int64_t inputs, std::int64_t hidden,
               bool reverse, std::vector<std::int64_t> lengths = {}) {
  return {.shape = {.cell = cell,
                    .dtype = DType::kFloat64,
                    .steps = steps,
                    .sequences = sequences,
                    .inputs = inputs,
                    .hidden = hidden,
                    .reverse = reverse},
          .lengths = std::move(lengths),
          .x_step = sequences * inputs,
          .x_sequence = inputs};
}

}  // namespace

TEST(recurrence_equals_plain_loops) {
  for (const Cell cell : kCells) {
    for (const bool reverse : {false, true}) {
      for (const std::int64_t hidden : {1, 7, 8, 16, 19, 33, 65}) {
        check_forward(make_case(cell, 4, 13, 3, hidden, reverse));
        check_forward(make_case(cell, 5, 4, 17, hidden, reverse, {0, 5, 2, 1}));
      }
      check_forward(make_case(cell, 0, 3, 2, 5, reverse));
      check_forward(make_case(cell, 3, 0, 2, 5, reverse));
      check_forward(make_case(cell, 1, 1, 1, 1, reverse));
    }
  }
}

TEST(recurrence_gradients_equal_difference_quotients) {
  for (const Cell cell : kCells) {
    if (cell == Cell::kReluRnn) continue;  // it has kinks; see below
    for (const bool reverse : {false, true}) {
      check_backward(make_case(cell, 3, 7, 2, 9, reverse));
      check_backward(make_case(cell, 4, 4, 9, 5, reverse, {0, 4, 2, 1}));
      check_backward(make_case(cell, 1, 1, 1, 1, reverse));
      check_backward(make_case(cell, 0, 2, 3, 4, reverse));
      check_backward(make_case(cell, 2, 2, 1, 33, reverse));
    }
  }
}

TEST(recurrence_gradients_of_relu) {
  // Steps stay on one side of the kink: with these values no sum comes near zero.
  check_backward(make_case(Cell::kReluRnn, 2, 3, 2, 5, false));
  check_backward(make_case(Cell::kReluRnn, 2, 3, 2, 5, true, {1, 2, 0}));
}

// Layers that are too large for the first-level cache take their products in blocks of weights and sequences.
TEST(recurrence_of_large_layers) {
  std::vector<std::int64_t> lengths(131);
  for (std::size_t n = 0; n < lengths.size(); ++n) lengths[n] = static_cast<std::int64_t>(n * 7 % 40) / 10;
  for (const bool reverse : {false, true}) {
    for (const Cell cell : {Cell::kLstm, Cell::kGru}) {
      for (const Case& test :
           {make_case(cell, 3, 131, 41, 100, reverse), make_case(cell, 3, 131, 41, 100, reverse, lengths),
            make_case(cell, 2, 5, 130, 9, reverse)}) {
        check_forward(test);
        check_slopes(test);
      }
    }
    for (const Case& test : {make_case(Cell::kTanhRnn, 3, 131, 290, 130, reverse, lengths),
                             make_case(Cell::kTanhRnn, 2, 400, 5, 20, reverse)}) {
      check_forward(test);
      check_slopes(test);
    }
  }
}

TEST(recurrence_does_not_depend_on_threads) {
  for (const Cell cell : kCells) {
    for (const Case& test : {make_case(cell, 10, 33, 8, 40, false), make_case(cell, 2, 150, 41, 100, false)}) {
      const Data data = make_data(test.shape);
      const Result<double> serial = run<double>(test, data, serial_for);
      for (const ParallelFor parallel_for : testing::parallel_fors()) {
        CHECK(run<double>(test, data, parallel_for) == serial);
      }
      const Result<float> serial_mixed = run<float>(mixed(test), data, serial_for);
      for (const ParallelFor parallel_for : testing::parallel_fors()) {
        CHECK(run<float>(mixed(test), data, parallel_for) == serial_mixed);
      }
    }
  }
}

// With small whole numbers nothing is rounded: all sums, states and gradients of a ReLU layer are whole numbers that
// bf16 has.
TEST(recurrence_in_bf16_is_exact_where_bf16_is) {
  const auto whole = [](Values& values, std::int64_t of_each) {  // mostly zeros, so that sums stay small
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto place = static_cast<std::int64_t>(i) * 7919 % of_each;
      values[i] = place < 2 ? std::copysign(1, values[i]) : 0;
    }
  };
  bool any = false;
  for (const bool reverse : {false, true}) {
    for (const std::int64_t hidden : {1, 2, 15, 16, 17, 33, 64, 131}) {
      for (const std::int64_t inputs : {1, 2, 5, 32, 290}) {
        for (const std::int64_t sequences : {1, 2, 13, 131}) {
          Case test = make_case(Cell::kReluRnn, 3, sequences, inputs, hidden, reverse);
          for (std::int64_t n = 0; n < sequences && inputs != 32; ++n) test.lengths.push_back(n * 5 % 7 % 4);
          Data d = make_data(test.shape);
          whole(d.w_ih, inputs);
          whole(d.w_hh, hidden);
          for (Values* values : {&d.x, &d.b_ih, &d.b_hh, &d.h0, &d.dy, &d.dh}) whole(*values, 5);
          const Result<float> wanted = run<float>(single(test), d, serial_for);
          float largest = 0;
          for (const auto* values : {&wanted.y, &wanted.db_ih, &wanted.dh0}) {
            for (const float value : *values) largest = std::max(largest, std::abs(value));
          }
          CHECK(largest <= 256);
          any = any || largest > 2;
          testing::for_every_width([&] { CHECK(run<float>(mixed(test), d, serial_for) == wanted); });
        }
      }
    }
  }
  CHECK(any);
}

// Numbers after a sequence's end count for nothing, whatever they are.
TEST(recurrence_in_bf16_reads_nothing_after_the_end) {
  for (const Cell cell : kCells) {
    for (const bool reverse : {false, true}) {
      const Case test = mixed(make_case(cell, 4, 5, 3, 9, reverse, {0, 4, 2, 3, 1}));
      Data data = make_data(test.shape);
      const Result<float> wanted = run<float>(test, data, serial_for);
      for (std::int64_t t = 0; t < test.shape.steps; ++t) {
        for (std::int64_t n = 0; n < test.shape.sequences; ++n) {
          if (t < test.lengths[at(n)]) continue;
          std::fill_n(data.x.begin() + (t * test.shape.sequences + n) * test.shape.inputs, test.shape.inputs,
                      std::numeric_limits<double>::quiet_NaN());
        }
      }
      testing::for_every_width([&] {
        const Result<float> found = run<float>(test, data, serial_for);
        CHECK(apart(found.dw_ih, Values(wanted.dw_ih.begin(), wanted.dw_ih.end())) < kMixedTolerance);
        CHECK(apart(found.dw_hh, Values(wanted.dw_hh.begin(), wanted.dw_hh.end())) < kMixedTolerance);
        CHECK(apart(found.h, Values(wanted.h.begin(), wanted.h.end())) < kMixedTolerance);
      });
    }
  }
}

TEST(recurrence_wants_fp32_or_fp64) {
  Case test = make_case(Cell::kGru, 1, 1, 1, 1, false);
  test.shape.dtype = DType::kBFloat16;
  CHECK_THROWS(saved_numel(test.shape), std::invalid_argument);
  test.shape.dtype = DType::kFloat64;
  test.shape.bf16 = true;
  CHECK_THROWS(saved_numel(test.shape), std::invalid_argument);
}

}  // namespace fastseq
