// Recurrent layers of any shape, strides and lengths: states against plain loops, gradients against the plain loss's
// slope, and the same bits however sequences are divided.
#include "core/recurrence/recurrence.h"

#include "fuzz.h"

namespace fastseq {

namespace {

using Values = std::vector<double>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// All inputs of a layer, and the gradients of its outputs; x is dense.
struct Data {
  Values x, w_ih, w_hh, b_ih, b_hh, h0, c0, dy, dh, dc;
};
constexpr std::array kInputs = {&Data::x, &Data::w_ih, &Data::w_hh, &Data::b_ih, &Data::b_hh, &Data::h0, &Data::c0};

struct Case {
  RecurrenceShape shape{};
  bool biases = true;
  std::vector<std::int64_t> lengths;  // none: all steps
  // Of x in memory, with gaps of its own.
  std::int64_t x_step = 0;
  std::int64_t x_sequence = 0;

  std::int64_t length(std::int64_t n) const { return lengths.empty() ? shape.steps : lengths[at(n)]; }
};

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

struct State {
  Values y, h, c;
  double kink = 1;  // how far sums of a ReLU layer stay from its kink
};

double linear(const Values& w, const Values& b, std::int64_t row, const double* in, std::int64_t count) {
  double sum = b[at(row)];
  for (std::int64_t q = 0; q < count; ++q) sum += w[at(row * count + q)] * in[q];
  return sum;
}

// One step of a hidden unit, from the products with x and with h.
template <class Ours, class Carried>
void plain_cell(Cell cell, const Ours& ours, const Carried& carried, State& state, std::size_t place, double before) {
  double& h = state.h[place];
  if (cell == Cell::kLstm) {
    double& c = state.c[place];
    const auto gate = [&](std::int64_t g) { return ours(g) + carried(g); };
    c = sigmoid(gate(1)) * c + sigmoid(gate(0)) * std::tanh(gate(2));
    h = sigmoid(gate(3)) * std::tanh(c);
  } else if (cell == Cell::kGru) {
    const double z = sigmoid(ours(1) + carried(1));
    h = (1 - z) * std::tanh(ours(2) + sigmoid(ours(0) + carried(0)) * carried(2)) + z * before;
  } else {
    const double sum = ours(0) + carried(0);
    if (cell == Cell::kReluRnn) state.kink = std::min(state.kink, std::abs(sum));
    h = cell == Cell::kTanhRnn ? std::tanh(sum) : std::max(sum, 0.0);
  }
}

State plain_forward(const Case& test, const Data& d) {
  const RecurrenceShape& s = test.shape;
  State state{.y = Values(at(s.steps * s.sequences * s.hidden)), .h = d.h0, .c = d.c0};
  for (std::int64_t n = 0; n < s.sequences; ++n) {
    const std::int64_t length = test.length(n);
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t t = s.reverse ? length - 1 - i : i;
      const double* x = d.x.data() + (t * s.sequences + n) * s.inputs;
      const Values before(state.h.begin() + n * s.hidden, state.h.begin() + (n + 1) * s.hidden);
      for (std::int64_t u = 0; u < s.hidden; ++u) {
        const auto ours = [&](std::int64_t g) { return linear(d.w_ih, d.b_ih, g * s.hidden + u, x, s.inputs); };
        const auto carried = [&](std::int64_t g) {
          return linear(d.w_hh, d.b_hh, g * s.hidden + u, before.data(), s.hidden);
        };
        plain_cell(s.cell, ours, carried, state, at(n * s.hidden + u), before[at(u)]);
        state.y[at((t * s.sequences + n) * s.hidden + u)] = state.h[at(n * s.hidden + u)];
      }
    }
  }
  return state;
}

double plain_loss(const Case& test, const Data& d, double& kink) {
  const State state = plain_forward(test, d);
  double sum = 0;
  for (std::size_t i = 0; i < state.y.size(); ++i) sum += state.y[i] * d.dy[i];
  for (std::size_t i = 0; i < state.h.size(); ++i) sum += state.h[i] * d.dh[i];
  for (std::size_t i = 0; i < state.c.size() && test.shape.cell == Cell::kLstm; ++i) sum += state.c[i] * d.dc[i];
  kink = std::min(kink, state.kink);
  return sum;
}

template <class T>
std::vector<T> as(const Values& values) {
  return {values.begin(), values.end()};
}

template <class T>
struct Result {
  std::vector<T> y, h, c, dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0;
  bool operator==(const Result&) const = default;
};

// x in memory that ends with its last element; NaN where it must not be read.
template <class T>
std::vector<T> x_in_memory(const Case& test, const Values& x) {
  const RecurrenceShape& s = test.shape;
  const bool empty = s.steps == 0 || s.sequences == 0 || s.inputs == 0;
  const std::int64_t last = (s.steps - 1) * test.x_step + (s.sequences - 1) * test.x_sequence + s.inputs;
  std::vector<T> memory(at(empty ? 0 : last), std::numeric_limits<T>::quiet_NaN());
  for (std::int64_t n = 0; n < s.sequences; ++n) {
    for (std::int64_t t = 0; t < test.length(n); ++t) {
      for (std::int64_t i = 0; i < s.inputs; ++i) {
        memory[at(t * test.x_step + n * test.x_sequence + i)] =
            static_cast<T>(x[at((t * s.sequences + n) * s.inputs + i)]);
      }
    }
  }
  return memory;
}

template <class T>
Result<T> run(const Case& test, const Data& d, ParallelFor parallel_for) {
  const RecurrenceShape& s = test.shape;
  const std::vector<T> x = x_in_memory<T>(test, d.x);
  const auto w_ih = as<T>(d.w_ih), w_hh = as<T>(d.w_hh), b_ih = as<T>(d.b_ih), b_hh = as<T>(d.b_hh);
  const auto h0 = as<T>(d.h0), c0 = as<T>(d.c0), dy = as<T>(d.dy), dh = as<T>(d.dh), dc = as<T>(d.dc);
  const auto unset = [](const Values& like) { return std::vector<T>(like.size(), T(7)); };
  Result<T> r{.y = unset(d.dy),
              .h = unset(d.h0),
              .c = unset(d.c0),
              .dx = unset(d.x),
              .dw_ih = unset(d.w_ih),
              .dw_hh = unset(d.w_hh),
              .db_ih = unset(d.b_ih),
              .db_hh = unset(d.b_hh),
              .dh0 = unset(d.h0),
              .dc0 = unset(d.c0)};
  std::vector<T> saved(at(saved_numel(s)));
  const RecurrenceInputs in{.x = x.data(),
                            .x_step = test.x_step,
                            .x_sequence = test.x_sequence,
                            .w_ih = w_ih.data(),
                            .w_hh = w_hh.data(),
                            .b_ih = test.biases ? b_ih.data() : nullptr,
                            .b_hh = test.biases ? b_hh.data() : nullptr,
                            .h0 = h0.data(),
                            .c0 = c0.data(),
                            .lengths = test.lengths.empty() ? nullptr : test.lengths.data()};
  recurrence_forward(s, in, {.y = r.y.data(), .h = r.h.data(), .c = r.c.data(), .saved = saved.data()}, parallel_for);
  recurrence_backward(s, in,
                      {.y = r.y.data(),
                       .saved = saved.data(),
                       .dy = dy.data(),
                       .dh = dh.data(),
                       .dc = dc.data(),
                       .dx = r.dx.data(),
                       .dw_ih = r.dw_ih.data(),
                       .dw_hh = r.dw_hh.data(),
                       .db_ih = test.biases ? r.db_ih.data() : nullptr,
                       .db_hh = test.biases ? r.db_hh.data() : nullptr,
                       .dh0 = r.dh0.data(),
                       .dc0 = r.dc0.data()},
                      parallel_for);
  return r;
}

template <class T>
double apart(const std::vector<T>& found, const Values& wanted) {
  double worst = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::abs(static_cast<double>(found[i]) - wanted[i]);
    worst = error <= worst ? worst : error;  // NaN too
  }
  return worst;
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
  double kink = 1;
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
    losses[side] = plain_loss(test, moved, kink);
  }
  if (kink < 1e-3) return;
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
