// LSTM and GRU, forward alone and with backward, on one thread, in the sizes of bench_recurrent.py.
#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/recurrence/recurrence.h"
#include "harness.h"

namespace fastseq::bench {

namespace {

using Values = std::vector<double>;

// Where each of a layer's parameters and first states begins in one vector of all.
struct Places {
  std::int64_t w_ih, w_hh, b_ih, b_hh, h0, c0, numel;

  explicit Places(const RecurrenceShape& s) {
    const std::int64_t rows = gate_count(s.cell) * s.hidden;
    w_ih = 0;
    w_hh = w_ih + rows * s.inputs;
    b_ih = w_hh + rows * s.hidden;
    b_hh = b_ih + rows;
    h0 = b_hh + rows;
    c0 = h0 + s.sequences * s.hidden;
    numel = c0 + (s.cell == Cell::kLstm ? s.sequences * s.hidden : 0);
  }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// The outputs of one sequence, (steps, hidden), by plain loops.
Values plain_outputs(const RecurrenceShape& s, const std::vector<float>& x, const Values& p, std::int64_t sequence) {
  const Places at(s);
  const auto sum = [&](std::int64_t w, std::int64_t b, std::int64_t row, const auto* in, std::int64_t count) {
    return std::inner_product(in, in + count, p.data() + w + row * count, p[static_cast<std::size_t>(b + row)]);
  };
  Values h(p.begin() + at.h0 + sequence * s.hidden, p.begin() + at.h0 + (sequence + 1) * s.hidden);
  Values c(h.size());
  if (s.cell == Cell::kLstm) std::copy_n(p.begin() + at.c0 + sequence * s.hidden, s.hidden, c.begin());
  Values y;
  for (std::int64_t t = 0; t < s.steps; ++t) {
    const float* step = x.data() + (t * s.sequences + sequence) * s.inputs;
    const Values before = h;
    for (std::int64_t u = 0; u < s.hidden; ++u) {
      const auto given = [&](std::int64_t g) { return sum(at.w_ih, at.b_ih, g * s.hidden + u, step, s.inputs); };
      const auto carried = [&](std::int64_t g) {
        return sum(at.w_hh, at.b_hh, g * s.hidden + u, before.data(), s.hidden);
      };
      const auto gate = [&](std::int64_t g) { return given(g) + carried(g); };
      const auto i = static_cast<std::size_t>(u);
      if (s.cell == Cell::kLstm) {
        c[i] = sigmoid(gate(1)) * c[i] + sigmoid(gate(0)) * std::tanh(gate(2));
        h[i] = sigmoid(gate(3)) * std::tanh(c[i]);
      } else {
        const double z = sigmoid(gate(1));
        h[i] = (1 - z) * std::tanh(given(2) + sigmoid(gate(0)) * carried(2)) + z * before[i];
      }
    }
    y.insert(y.end(), h.begin(), h.end());
  }
  return y;
}

// A layer with its data. The input needs no gradient, as in a first layer.
struct Layer {
  RecurrenceShape shape;
  Places at;
  std::vector<float> x, parameters, gradients, y, h, c, saved, dy;

  explicit Layer(const RecurrenceShape& s)
      : shape(s),
        at(s),
        x(noise<float>(s.steps * s.sequences * s.inputs, 1)),
        parameters(noise<float>(at.numel, 2)),
        gradients(parameters.size()),
        y(static_cast<std::size_t>(s.steps * s.sequences * s.hidden)),
        h(static_cast<std::size_t>(s.sequences * s.hidden)),
        c(h.size()),
        saved(static_cast<std::size_t>(saved_numel(s))),
        dy(noise<float>(s.steps * s.sequences * s.hidden, 3)) {
    const auto size = static_cast<float>(1 / std::sqrt(static_cast<double>(s.hidden)));  // as torch draws them
    for (float& value : parameters) value *= size;
  }

  RecurrenceInputs inputs() const {
    const float* p = parameters.data();
    return {.x = x.data(),
            .x_step = shape.sequences * shape.inputs,
            .x_sequence = shape.inputs,
            .w_ih = p + at.w_ih,
            .w_hh = p + at.w_hh,
            .b_ih = p + at.b_ih,
            .b_hh = p + at.b_hh,
            .h0 = p + at.h0,
            .c0 = shape.cell == Cell::kLstm ? p + at.c0 : nullptr,
            .lengths = nullptr};
  }

  void forward(bool saves) {
    recurrence_forward(
        shape, inputs(),
        {.y = y.data(), .h = h.data(), .c = c.data(), .saved = saves ? static_cast<void*>(saved.data()) : nullptr},
        serial_for);
  }

  void backward() {
    float* g = gradients.data();
    recurrence_backward(shape, inputs(),
                        {.y = y.data(),
                         .saved = saved.data(),
                         .dy = dy.data(),
                         .dh = nullptr,
                         .dc = nullptr,
                         .dx = nullptr,
                         .dw_ih = g + at.w_ih,
                         .dw_hh = g + at.w_hh,
                         .db_ih = g + at.b_ih,
                         .db_hh = g + at.b_hh,
                         .dh0 = g + at.h0,
                         .dc0 = shape.cell == Cell::kLstm ? g + at.c0 : nullptr},
                        serial_for);
  }
};

// Plain loops over all sequences would take seconds: only the first and the last one are looked at, and only their
// outputs have gradients.
void check(Layer& layer) {
  const RecurrenceShape& s = layer.shape;
  const std::vector<float> all = layer.dy;
  for (std::size_t i = 0; i < layer.dy.size(); ++i) {
    const std::int64_t sequence = static_cast<std::int64_t>(i) / s.hidden % s.sequences;
    if (sequence != 0 && sequence != s.sequences - 1) layer.dy[i] = 0;
  }
  layer.forward(true);
  layer.backward();

  Values parameters(layer.parameters.begin(), layer.parameters.end());
  const auto looked_at = [&](const auto& visit) {
    for (std::int64_t sequence = 0; sequence < s.sequences; sequence += std::max<std::int64_t>(s.sequences - 1, 1)) {
      const Values y = plain_outputs(s, layer.x, parameters, sequence);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const auto [step, unit] = std::lldiv(static_cast<std::int64_t>(i), s.hidden);
        visit(y[i], static_cast<std::size_t>((step * s.sequences + sequence) * s.hidden + unit));
      }
    }
  };
  looked_at([&](double wanted, std::size_t i) { require(std::abs(layer.y[i] - wanted) <= 1e-4, "outputs"); });

  // The gradients' product with a direction is the loss's slope along it.
  const Values direction = noise<double>(layer.at.numel, 4);
  const auto loss_at = [&](double distance) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      parameters[i] = layer.parameters[i] + distance * direction[i];
    }
    double loss = 0;
    looked_at([&](double y, std::size_t i) { loss += y * layer.dy[i]; });
    return loss;
  };
  constexpr double kStep = 1e-6;
  const double slope = (loss_at(kStep) - loss_at(-kStep)) / (2 * kStep);
  double product = 0;
  double squares = 0;
  for (std::size_t i = 0; i < direction.size(); ++i) {
    product += direction[i] * layer.gradients[i];
    squares += static_cast<double>(layer.gradients[i]) * layer.gradients[i];
  }
  require(std::abs(product - slope) <= 1e-3 * std::sqrt(squares), "gradients");
  layer.dy = all;
}

// Operations of the matrix products: x and h by their weights; backward, the same for the weights' gradients, and the
// gates' gradients by the weights of h.
double operations(const RecurrenceShape& s, bool backward) {
  const auto rows = 2.0 * static_cast<double>(s.steps * s.sequences * gate_count(s.cell) * s.hidden);
  const auto forward = rows * static_cast<double>(s.inputs + s.hidden);
  return backward ? 2 * forward + rows * static_cast<double>(s.hidden) : forward;
}

void add_layer(const RecurrenceShape& s, bool backward) {
  const std::string name = std::string(s.cell == Cell::kLstm ? "LSTM" : "GRU") + "/(" + std::to_string(s.inputs) +
                           ", " + std::to_string(s.hidden) + ", " + std::to_string(s.sequences) + ", " +
                           std::to_string(s.steps) + ")/" + (backward ? "forward + backward" : "forward");
  add(name, {.operations = operations(s, backward)}, [s, backward]() -> Call {
    const auto layer = std::make_shared<Layer>(s);
    check(*layer);
    return [layer, backward] {
      layer->forward(backward);
      if (backward) layer->backward();
    };
  });
}

void add_all() {
  struct Size {
    std::int64_t inputs, hidden, sequences, steps;
  };
  for (const Cell cell : {Cell::kLstm, Cell::kGru}) {
    for (const Size& size : std::vector<Size>{{10, 10, 20, 10},
                                              {10, 10, 256, 10},
                                              {10, 10, 100, 100},
                                              {32, 64, 64, 32},
                                              {64, 256, 128, 50},
                                              {1, 32, 1000, 24}}) {
      for (const bool backward : {false, true}) {
        add_layer({.cell = cell,
                   .dtype = DType::kFloat32,
                   .steps = size.steps,
                   .sequences = size.sequences,
                   .inputs = size.inputs,
                   .hidden = size.hidden,
                   .reverse = false},
                  backward);
      }
    }
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) { return fastseq::bench::run(fastseq::bench::add_all, argc, argv); }
