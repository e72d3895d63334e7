// Layers with products of bf16 numbers beside those in fp32: with whole numbers, which bf16 has, they are equal.
#include <cstdint>
#include <utility>
#include <vector>

#include "check.h"
#include "core/step/layer.h"
#include "noise.h"
#include "ranges.h"

namespace fastseq::step {

namespace {

using testing::noise;
using Values = std::vector<float>;

// Of 0, 1 and -1.
Values whole(std::int64_t numel, std::uint32_t seed) {
  Values values = noise<float>(numel, seed);
  for (float& value : values) value = value > 0.4F ? 1.0F : value < -0.4F ? -1.0F : 0.0F;
  return values;
}

struct Sizes {
  std::int64_t steps;
  std::int64_t sequences;
  std::int64_t inputs;
  std::int64_t outputs;
};

// Outputs and gradients.
struct Result {
  Values y, dx, dw, db;
  bool operator==(const Result&) const = default;
};

using Draw = Values (*)(std::int64_t, std::uint32_t);

Values real(std::int64_t numel, std::uint32_t seed) { return noise<float>(numel, seed); }

// x with a gap after each sequence, and after each step.
Result run_linear(const Sizes& s, bool bf16, bool bias, Draw draw, ParallelFor parallel_for) {
  constexpr std::int64_t kGap = 3;
  const Rows<float> layout{.data = nullptr, .step = s.sequences * (s.inputs + kGap) + 1, .sequence = s.inputs + kGap};
  const Values x = draw(s.steps * layout.step, 1);
  const Values w = draw(s.outputs * s.inputs, 2);
  const Values b = draw(s.outputs, 3);
  const std::int64_t rows = s.steps * s.sequences;
  Values dy = draw(rows * s.outputs, 4);
  dy.resize(dy.size() + 16);  // vectors may be read beyond the end
  Result result{.y = {}, .dx = {}, .dw = Values(w.size(), 7), .db = Values(b.size(), 7)};
  const auto layer =
      make_linear<float>(s.inputs, s.outputs, {.value = w.data(), .gradient = result.dw.data()},
                         {.value = bias ? b.data() : nullptr, .gradient = bias ? result.db.data() : nullptr});
  const Chunk chunk{.steps = s.steps,
                    .sequences = s.sequences,
                    .lengths = nullptr,
                    .training = true,
                    .seed = 0,
                    .parallel_for = parallel_for,
                    .bf16 = bf16};
  const Rows<float> in{.data = x.data(), .step = layout.step, .sequence = layout.sequence};
  const float* y = layer->forward(chunk, in);
  result.y.assign(y, y + rows * s.outputs);
  const float* dx = layer->backward(chunk, in, dy.data(), true);
  result.dx.assign(dx, dx + rows * s.inputs);
  return result;
}

// Two layers; lengths of sequences if it `ends`.
Values run_recurrent(const Sizes& s, bool bf16, bool ends) {
  const RecurrentOptions options{.cell = Cell::kGru,
                                 .inputs = s.inputs,
                                 .hidden = s.outputs,
                                 .layers = 2,
                                 .biases = true,
                                 .bidirectional = true,
                                 .dropout = 0,
                                 .takes_lengths = true,
                                 .carries = false,
                                 .number = 0};
  std::vector<Values> values;
  std::vector<Values> gradients;
  for (std::int64_t row = 0; row < 4; ++row) {
    const std::int64_t inputs = row < 2 ? s.inputs : 2 * s.outputs;
    for (const std::int64_t columns : {inputs, s.outputs, std::int64_t{1}, std::int64_t{1}}) {
      values.push_back(noise<float>(3 * s.outputs * columns, static_cast<std::uint32_t>(values.size()) + 1, 0.2));
      gradients.emplace_back(values.back().size());
    }
  }
  std::vector<Weights<float>> weights;
  weights.reserve(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) weights.push_back({values[i].data(), gradients[i].data()});
  const auto layer = make_recurrent<float>(options, std::move(weights));
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(s.sequences));
  for (std::size_t n = 0; n < lengths.size(); ++n) lengths[n] = static_cast<std::int64_t>(n) % (s.steps + 1);
  const Chunk chunk{.steps = s.steps,
                    .sequences = s.sequences,
                    .lengths = ends ? lengths.data() : nullptr,
                    .training = true,
                    .seed = 0,
                    .parallel_for = serial_for,
                    .bf16 = bf16};
  const Values x = real(chunk.rows() * s.inputs, 40);
  const Rows<float> rows{.data = x.data(), .step = s.sequences * s.inputs, .sequence = s.inputs};
  Values dy = real(chunk.rows() * 2 * s.outputs, 41);
  const float* y = layer->forward(chunk, rows);
  Values all(y, y + chunk.rows() * 2 * s.outputs);
  const float* dx = layer->backward(chunk, rows, dy.data(), true);
  all.insert(all.end(), dx, dx + chunk.rows() * s.inputs);
  for (const Values& gradient : gradients) all.insert(all.end(), gradient.begin(), gradient.end());
  return all;
}

}  // namespace

TEST(linear_in_bf16_is_exact_where_bf16_is) {
  for (const Sizes& s : {Sizes{3, 5, 33, 40}, Sizes{1, 64, 32, 32}, Sizes{7, 1, 47, 35}, Sizes{20, 9, 64, 33},
                         Sizes{50, 30, 41, 32}, Sizes{0, 3, 32, 32}, Sizes{3, 0, 32, 32}}) {
    for (const bool bias : {true, false}) {
      const Result wanted = run_linear(s, false, bias, whole, serial_for);
      testing::for_every_width([&] {
        for (const ParallelFor parallel_for : testing::parallel_fors()) {
          CHECK(run_linear(s, true, bias, whole, parallel_for) == wanted);
        }
      });
    }
  }
}

TEST(layers_in_bf16_are_near_those_in_fp32) {
  const auto check = [](const Values& found, const Values& wanted) {
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      error += (found[i] - wanted[i]) * (found[i] - wanted[i]);
      size += wanted[i] * wanted[i];
    }
    CHECK(error > 0);
    CHECK(error < size * 1e-4);  // within 1 % on the whole
  };
  const Sizes sizes{6, 11, 37, 50};
  testing::for_every_width([&] {
    const Result found = run_linear(sizes, true, true, real, serial_for);
    const Result wanted = run_linear(sizes, false, true, real, serial_for);
    check(found.y, wanted.y);
    check(found.dx, wanted.dx);
    check(found.dw, wanted.dw);
    CHECK(found.db == wanted.db);  // a sum, no product
    for (const bool ends : {false, true}) check(run_recurrent(sizes, true, ends), run_recurrent(sizes, false, ends));
  });
}

TEST(small_layers_stay_in_fp32) {
  for (const Sizes& s : {Sizes{3, 5, 31, 64}, Sizes{3, 5, 64, 31}, Sizes{3, 5, 1, 1}}) {
    CHECK(run_linear(s, true, true, real, serial_for) == run_linear(s, false, true, real, serial_for));
  }
  const Sizes sizes{4, 3, 64, 31};
  CHECK(run_recurrent(sizes, true, false) == run_recurrent(sizes, false, false));
}

}  // namespace fastseq::step
