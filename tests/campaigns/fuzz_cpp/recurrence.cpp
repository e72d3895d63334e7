// Recurrent layers of any shape, strides and lengths: states against plain loops, gradients against the plain loss's
// slope, and the same bits however sequences are divided.
#include "core/recurrence/recurrence.h"

#include "../../cpp/plain_recurrence.h"
#include "fuzz.h"

namespace fastseq {

namespace {

using namespace testing;

constexpr std::array kInputs = {&Data::x, &Data::w_ih, &Data::w_hh, &Data::b_ih, &Data::b_hh, &Data::h0, &Data::c0};

Data make_data(const Case& test, std::uint32_t seed) {
  const RecurrenceShape& s = test.shape;
  const std::int64_t rows = gate_count(s.cell) * s.hidden;
  const std::int64_t states = s.sequences * s.hidden;
  const double size = std::min(0.5, 2 / std::sqrt(static_cast<double>(s.inputs + s.hidden)));  // few sums saturate
  fuzz::Noise noise(seed);
  return {.x = noise.numbers(s.steps * s.sequences * s.inputs),
          .w_ih = noise.numbers(rows * s.inputs, size),
          .w_hh = noise.numbers(rows * s.hidden, size),
          .b_ih = noise.numbers(rows, test.biases ? size : 0),
          .b_hh = noise.numbers(rows, test.biases ? size : 0),
          .h0 = noise.numbers(states),
          .c0 = noise.numbers(states),
          .dy = noise.numbers(s.steps * states),
          .dh = noise.numbers(states),
          .dc = noise.numbers(states)};
}

template <class T>
void check_states(const Case& test, const Result<T>& found, const State& wanted, double tolerance) {
  fuzz::demand(apart(found.y, wanted.y) <= tolerance, "y");
  fuzz::demand(apart(found.h, wanted.h) <= tolerance, "h");
  if (test.shape.cell == Cell::kLstm) fuzz::demand(apart(found.c, wanted.c) <= tolerance, "c");
}

// The gradients' products with a direction are the slope of the loss along it.
void check_slope(const Case& test, const Data& data, const Result<double>& found) {
  constexpr double kStep = 1e-5;
  Data direction = make_data(test, 77);
  const std::array gradients = {&found.dx,    &found.dw_ih, &found.dw_hh, &found.db_ih,
                                &found.db_hh, &found.dh0,   &found.dc0};
  double product = 0;
  double size = 1;
  std::array<double, 2> losses{};
  bool smooth = true;
  for (std::size_t i = 0; i < kInputs.size(); ++i) {
    const bool counts = i == 6 ? test.shape.cell == Cell::kLstm : test.biases || (i != 3 && i != 4);
    for (std::size_t j = 0; counts && j < gradients[i]->size(); ++j) {
      product += (*gradients[i])[j] * (direction.*kInputs[i])[j];
      size += std::abs((*gradients[i])[j]);
    }
  }
  for (std::size_t side = 0; side < 2; ++side) {
    Data moved = data;
    for (const auto member : kInputs) {
      for (std::size_t j = 0; j < (moved.*member).size(); ++j) {
        (moved.*member)[j] += (side == 0 ? -kStep : kStep) * (direction.*member)[j];
      }
    }
    double kink = 1;
    losses[side] = plain_loss(test, moved, &kink);
    smooth = smooth && kink >= 1e-3;
  }
  if (!smooth) return;
  fuzz::demand(std::abs((losses[1] - losses[0]) / (2 * kStep) - product) <= 1e-6 * size, "gradients");
}

Case draw_case(fuzz::Draw& draw) {
  Case test;
  RecurrenceShape& s = test.shape;
  s.cell = draw.of(std::array{Cell::kLstm, Cell::kGru, Cell::kTanhRnn, Cell::kReluRnn});
  s.steps = draw.between(0, 4);
  s.sequences = draw.between(0, draw.between(0, 7) == 0 ? 20 : 5);
  s.inputs = draw.between(0, 5);
  s.hidden = draw.between(0, draw.yes() ? 35 : 9);
  s.reverse = draw.yes();
  test.biases = draw.yes();
  test.x_sequence = s.inputs + draw.between(0, 2);
  test.x_step = s.sequences * test.x_sequence + draw.between(0, 2);
  if (draw.yes()) {
    test.x_step = s.inputs;
    test.x_sequence = s.inputs * s.steps;
  }
  if (draw.yes()) {
    for (std::int64_t n = 0; n < s.sequences; ++n) test.lengths.push_back(draw.between(0, s.steps));
  }
  return test;
}

}  // namespace

}  // namespace fastseq

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fastseq;
  fuzz::Draw draw(data, size);
  draw.width();
  Case test = draw_case(draw);
  const int kind = static_cast<int>(draw.between(0, 2));
  const Data numbers = make_data(test, draw.seed());
  const State wanted = plain_forward(test, numbers);
  if (kind == 0) {
    test.shape.dtype = DType::kFloat64;
    const auto found = run<double>(test, numbers, serial_for);
    check_states(test, found, wanted, 1e-12);
    check_slope(test, numbers, found);
    fuzz::demand(run<double>(test, numbers, fuzz::backwards_for) == found, "the same in parts");
  } else {
    test.shape.dtype = DType::kFloat32;
    test.shape.bf16 = kind == 2;
    const auto found = run<float>(test, numbers, serial_for);
    check_states(test, found, wanted, test.shape.bf16 ? 0.05 : 1e-4);
    fuzz::demand(run<float>(test, numbers, fuzz::backwards_for) == found, "the same in parts");
  }
  return 0;
}
