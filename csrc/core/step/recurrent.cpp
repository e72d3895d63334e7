#include <algorithm>

#include "core/step/buffer.h"
#include "core/step/layer.h"

namespace fastseq::step {

namespace {

// One layer in one direction.
template <class T>
struct Direction {
  std::vector<Weights<T>> weights;  // w_ih, w_hh and perhaps b_ih, b_hh
  bool reverse = false;
  T* state[2] = {};    // h and c after the chunk,
  Buffer<T> start[2];  // and before it
  Buffer<T> y;
  Buffer<T> saved;
  Buffer<T> dx;
};

// A layer of the stack: what its directions put together.
template <class T>
struct Level {
  std::vector<Direction<T>> directions;
  Buffer<T> y;      // of both directions, or after dropout
  Buffer<T> dy[2];  // of each direction
};

template <class T>
class Recurrent : public Layer<T> {
 public:
  Recurrent(const RecurrentOptions& options, std::vector<Weights<T>> weights) : options_(options) {
    const std::size_t each = options.biases ? 4 : 2;
    auto next = weights.begin();
    for (std::int64_t l = 0; l < options.layers; ++l) {
      Level<T> level;
      for (const bool reverse : {false, true}) {
        if (reverse && !options.bidirectional) continue;
        Direction<T> direction;
        direction.reverse = reverse;
        direction.weights.assign(next, next + static_cast<std::ptrdiff_t>(each));
        next += static_cast<std::ptrdiff_t>(each);
        level.directions.push_back(std::move(direction));
      }
      levels_.push_back(std::move(level));
    }
  }

  std::int64_t outputs() const override { return options_.hidden * (options_.bidirectional ? 2 : 1); }
  std::vector<T*> gradients() const override {
    std::vector<T*> all;
    for (const Level<T>& level : levels_) {
      for (const Direction<T>& direction : level.directions) {
        for (const Weights<T>& w : direction.weights) all.push_back(w.gradient);
      }
    }
    return all;
  }
  std::int64_t state_count() const override { return options_.carries ? parts() : 0; }

  void set_state(const std::vector<T*>& state) override { state_ = state; }

  const T* forward(const Chunk& chunk, const Rows<T>& x) override {
    if (!options_.carries) start_from_zeros(chunk);
    Rows<T> in = x;
    std::int64_t row = 0;
    for (std::size_t l = 0; l < levels_.size(); ++l) {
      Level<T>& level = levels_[l];
      for (Direction<T>& direction : level.directions) run(chunk, direction, in, width(l), row++);
      const T* y = together(chunk, level);
      if (chunk.training && options_.dropout > 0 && l + 1 < levels_.size()) y = dropped(chunk, level, y, l);
      in = {y, chunk.sequences * outputs(), outputs()};
    }
    return in.data;
  }

  T* backward(const Chunk& chunk, const Rows<T>& x, T* dy, bool wants_dx) override {
    for (std::size_t l = levels_.size(); l-- > 0;) {
      Level<T>& level = levels_[l];
      if (chunk.training && options_.dropout > 0 && l + 1 < levels_.size()) {
        drop(dy, chunk.rows() * outputs(), options_.dropout, key(chunk, l));
      }
      const Rows<T> in = l == 0 ? x : Rows<T>{output(levels_[l - 1]), chunk.sequences * outputs(), outputs()};
      const bool wanted = l > 0 || wants_dx;
      T* dx = nullptr;
      for (std::size_t d = 0; d < level.directions.size(); ++d) {
        Direction<T>& direction = level.directions[d];
        const T* own = level.directions.size() == 1 ? dy : part(chunk, level, dy, d);
        T* const more = unroll_back(chunk, direction, in, width(l), own, wanted);
        if (dx == nullptr) {
          dx = more;
        } else if (wanted) {
          std::transform(dx, dx + chunk.rows() * width(l), more, dx, std::plus<T>());
        }
      }
      dy = dx;
    }
    return dy;
  }

 private:
  std::int64_t parts() const { return options_.cell == Cell::kLstm ? 2 : 1; }  // of the state
  std::int64_t width(std::size_t level) const { return level == 0 ? options_.inputs : outputs(); }
  std::uint64_t key(const Chunk& chunk, std::size_t level) const {
    return dropout_key(chunk.seed, (options_.number << 8) + 128 + static_cast<std::int64_t>(level));
  }

  RecurrenceShape shape(const Chunk& chunk, const Direction<T>& direction, std::int64_t inputs) const {
    return {.cell = options_.cell,
            .dtype = kDType<T>,
            .steps = chunk.steps,
            .sequences = chunk.sequences,
            .inputs = inputs,
            .hidden = options_.hidden,
            .reverse = direction.reverse,
            .bf16 = chunk.bf16 && options_.hidden >= kLeastUnitsForBf16};
  }
  RecurrenceInputs inputs_of(const Chunk& chunk, const Direction<T>& direction, const Rows<T>& x) const {
    const auto& w = direction.weights;
    return {.x = x.data,
            .x_step = x.step,
            .x_sequence = x.sequence,
            .w_ih = w[0].value,
            .w_hh = w[1].value,
            .b_ih = options_.biases ? w[2].value : nullptr,
            .b_hh = options_.biases ? w[3].value : nullptr,
            .h0 = direction.start[0].data(),
            .c0 = direction.start[1].data(),
            .lengths = options_.takes_lengths ? chunk.lengths : nullptr};
  }

  void start_from_zeros(const Chunk& chunk) {
    const std::int64_t rows = options_.layers * (options_.bidirectional ? 2 : 1);
    const std::int64_t numel = rows * chunk.sequences * options_.hidden;
    T* const own = own_state_.reserve(parts() * numel);
    std::fill_n(own, parts() * numel, T{});
    state_.clear();
    for (std::int64_t p = 0; p < parts(); ++p) state_.push_back(own + p * numel);
  }

  // The direction that is number `row` among all.
  void run(const Chunk& chunk, Direction<T>& direction, const Rows<T>& x, std::int64_t inputs, std::int64_t row) {
    const std::int64_t numel = chunk.sequences * options_.hidden;
    for (std::size_t s = 0; s < state_.size(); ++s) {
      direction.state[s] = state_[s] + row * numel;
      T* const start = direction.start[s].reserve(numel);
      // The state at a chunk's start, seen from its end, says nothing of the next chunk.
      if (direction.reverse) std::fill_n(direction.state[s], numel, T{});
      std::copy_n(direction.state[s], numel, start);
    }
    const RecurrenceShape s = shape(chunk, direction, inputs);
    const RecurrenceOutputs out{.y = direction.y.reserve(chunk.rows() * options_.hidden),
                                .h = direction.state[0],
                                .c = direction.state[1],
                                .saved = chunk.training ? direction.saved.reserve(saved_numel(s)) : nullptr};
    recurrence_forward(s, inputs_of(chunk, direction, x), out, chunk.parallel_for);
    if (direction.reverse) {
      for (std::size_t i = 0; i < state_.size(); ++i) std::fill_n(direction.state[i], numel, T{});
    }
  }

  T* unroll_back(const Chunk& chunk, Direction<T>& direction, const Rows<T>& x, std::int64_t inputs, const T* dy,
                 bool wants_dx) {
    T* const dx = wants_dx ? direction.dx.reserve(chunk.rows() * inputs) : nullptr;
    const auto& w = direction.weights;
    recurrence_backward(shape(chunk, direction, inputs), inputs_of(chunk, direction, x),
                        {.y = direction.y.data(),
                         .saved = direction.saved.data(),
                         .dy = dy,
                         .dh = nullptr,
                         .dc = nullptr,
                         .dx = dx,
                         .dw_ih = w[0].gradient,
                         .dw_hh = w[1].gradient,
                         .db_ih = options_.biases ? w[2].gradient : nullptr,
                         .db_hh = options_.biases ? w[3].gradient : nullptr,
                         .dh0 = nullptr,
                         .dc0 = nullptr},
                        chunk.parallel_for);
    return dx;
  }

  // The outputs of a level's directions, side by side.
  const T* together(const Chunk& chunk, Level<T>& level) const {
    if (level.directions.size() == 1) return level.directions[0].y.data();
    const std::int64_t h = options_.hidden;
    T* const y = level.y.reserve(chunk.rows() * outputs());
    for (std::int64_t i = 0; i < chunk.rows(); ++i) {
      for (std::int64_t d = 0; d < 2; ++d) {
        std::copy_n(level.directions[static_cast<std::size_t>(d)].y.data() + i * h, h, y + (2 * i + d) * h);
      }
    }
    return y;
  }
  const T* dropped(const Chunk& chunk, Level<T>& level, const T* y, std::size_t number) const {
    const std::int64_t numel = chunk.rows() * outputs();
    T* const to = level.y.reserve(numel);
    if (to != y) std::copy_n(y, numel, to);
    drop(to, numel, options_.dropout, key(chunk, number));
    return to;
  }
  // What the next level got.
  const T* output(const Level<T>& level) const {
    return level.y.data() != nullptr ? level.y.data() : level.directions[0].y.data();
  }
  const T* part(const Chunk& chunk, Level<T>& level, const T* dy, std::size_t direction) const {
    const std::int64_t h = options_.hidden;
    T* const own = level.dy[direction].reserve(chunk.rows() * h);
    for (std::int64_t i = 0; i < chunk.rows(); ++i) {
      std::copy_n(dy + (2 * i + static_cast<std::int64_t>(direction)) * h, h, own + i * h);
    }
    return own;
  }

  RecurrentOptions options_;
  std::vector<Level<T>> levels_;
  std::vector<T*> state_;
  Buffer<T> own_state_;  // if it carries none
};

}  // namespace

template <class T>
std::unique_ptr<Layer<T>> make_recurrent(const RecurrentOptions& options, std::vector<Weights<T>> weights) {
  return std::make_unique<Recurrent<T>>(options, std::move(weights));
}
template std::unique_ptr<Layer<float>> make_recurrent(const RecurrentOptions&, std::vector<Weights<float>>);
template std::unique_ptr<Layer<double>> make_recurrent(const RecurrentOptions&, std::vector<Weights<double>>);

}  // namespace fastseq::step
