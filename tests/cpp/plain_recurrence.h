// Recurrent layers by plain loops in double precision, and a layer of the core that is run on the same data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/recurrence/recurrence.h"

namespace fastseq::testing {

using Values = std::vector<double>;

inline std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// All inputs of a layer, and the gradients of its outputs; x is dense.
struct Data {
  Values x, w_ih, w_hh, b_ih, b_hh, h0, c0, dy, dh, dc;
};

struct Case {
  RecurrenceShape shape{};
  bool biases = true;
  std::vector<std::int64_t> lengths;  // none: all steps
  // Of x in memory, with gaps of its own.
  std::int64_t x_step = 0;
  std::int64_t x_sequence = 0;

  std::int64_t length(std::int64_t n) const { return lengths.empty() ? shape.steps : lengths[at(n)]; }
};

struct State {
  Values y, h, c;
  double kink = 1;  // how far sums of a ReLU layer stay from its kink
};

inline double linear(const Values& w, const Values& b, std::int64_t row, const double* in, std::int64_t count) {
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

inline State plain_forward(const Case& test, const Data& d) {
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

// The function to differentiate; `kink` gets how far sums of a ReLU layer stay from its kink.
inline double plain_loss(const Case& test, const Data& d, double* kink = nullptr) {
  const State state = plain_forward(test, d);
  double sum = 0;
  for (std::size_t i = 0; i < state.y.size(); ++i) sum += state.y[i] * d.dy[i];
  for (std::size_t i = 0; i < state.h.size(); ++i) sum += state.h[i] * d.dh[i];
  for (std::size_t i = 0; i < state.c.size() && test.shape.cell == Cell::kLstm; ++i) sum += state.c[i] * d.dc[i];
  if (kink != nullptr) *kink = state.kink;
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
  double worst = found.size() == wanted.size() ? 0 : 1e9;
  for (std::size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
    const double error = std::abs(static_cast<double>(found[i]) - wanted[i]);
    worst = error <= worst ? worst : error;  // NaN too
  }
  return worst;
}

}  // namespace fastseq::testing
