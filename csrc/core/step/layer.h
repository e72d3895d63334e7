// Layers of a model that is trained without autograd; see step.h.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/parallel.h"
#include "core/recurrence/recurrence.h"

namespace fastseq::step {

// What models compute in.
template <class T>
inline constexpr DType kDType = std::is_same_v<T, float> ? DType::kFloat32 : DType::kFloat64;

// Features of all time steps and sequences of a chunk; strides are in elements, features are contiguous.
template <class T>
struct Rows {
  const T* data;
  std::int64_t step;
  std::int64_t sequence;
};

struct Chunk {
  std::int64_t steps;
  std::int64_t sequences;
  const std::int64_t* lengths;  // (sequences), steps that count, or null: all; for layers that take them
  bool training;                // dropout is active, and backward may follow
  std::uint64_t seed;           // of dropout
  ParallelFor parallel_for;
  // In fp32 models: factors of products are rounded to bf16, in layers that are faster so; their sums, and all else,
  // are in fp32.
  bool bf16 = false;

  std::int64_t rows() const { return steps * sequences; }
};

// Recurrent layers of fewer units, and linear layers of fewer inputs or outputs, lose more by rounding factors than
// they gain.
inline constexpr std::int64_t kLeastUnitsForBf16 = 32;

// A parameter, and where its gradient goes.
template <class T>
struct Weights {
  const T* value;
  T* gradient;
};

template <class T>
class Layer {
 public:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  virtual ~Layer() = default;

  virtual std::int64_t outputs() const = 0;
  // Returns the outputs, contiguous; they stay until the next call.
  virtual const T* forward(const Chunk& chunk, const Rows<T>& x) = 0;
  // Of the last forward, with the same x. dy: contiguous, is overwritten. Sets the weights' gradients; returns those of
  // x, contiguous, or null if they are not wanted.
  virtual T* backward(const Chunk& chunk, const Rows<T>& x, T* dy, bool wants_dx) = 0;
  // Where `backward` sets gradients.
  virtual std::vector<T*> gradients() const { return {}; }
  // Memory of the state that it carries, for all sequences; none by default.
  virtual void set_state(const std::vector<T*>& /*state*/) {}
  virtual std::int64_t state_count() const { return 0; }
};

enum class Activation : std::uint8_t { kRelu, kSigmoid, kTanh };

// Of a sequence's steps that count.
enum class Pooling : std::uint8_t { kLast, kMean, kMax };

struct RecurrentOptions {
  Cell cell;
  std::int64_t inputs;
  std::int64_t hidden;
  std::int64_t layers;
  bool biases;
  bool bidirectional;
  double dropout;       // between layers
  bool takes_lengths;   // otherwise all steps count
  bool carries;         // otherwise each chunk starts from zeros
  std::int64_t number;  // of the layer in the model, for its dropout
};

// See fastseq.sklearn.forecasting.segment_rnn.
struct SegmentRnnOptions {
  std::int64_t horizon;
  std::int64_t variables;
  std::int64_t outputs;   // for each value
  std::int64_t lags;      // values that it sees,
  std::int64_t features;  // with so many features, of which it uses the last ones
  std::int64_t segment;
  std::int64_t hidden;
};

template <class T>
struct SegmentRnnParts {
  std::unique_ptr<Layer<T>> linear;
  std::unique_ptr<Layer<T>> embed;
  std::unique_ptr<Layer<T>> recurrent;
  std::unique_ptr<Layer<T>> mix;
  std::unique_ptr<Layer<T>> dropout;
  std::unique_ptr<Layer<T>> out;
};

// Sets elements to zero with probability `rate` and scales the others by 1 / (1 - rate); the same ones for the same
// key.
template <class T>
void drop(T* data, std::int64_t count, double rate, std::uint64_t key);
// Of the dropout with this number.
std::uint64_t dropout_key(std::uint64_t seed, std::int64_t number);

// w: (outputs, inputs); bias: (outputs), or null.
template <class T>
std::unique_ptr<Layer<T>> make_linear(std::int64_t inputs, std::int64_t outputs, Weights<T> w, Weights<T> bias);
template <class T>
std::unique_ptr<Layer<T>> make_activation(Activation kind, std::int64_t features);
template <class T>
std::unique_ptr<Layer<T>> make_dropout(double rate, std::int64_t features, std::int64_t number);
// Weights in torch's order: for each layer and direction w_ih, w_hh and, with biases, b_ih and b_hh. The state that it
// carries: h and, for LSTMs, c, (layers * directions, sequences, hidden) each.
template <class T>
std::unique_ptr<Layer<T>> make_recurrent(const RecurrentOptions& options, std::vector<Weights<T>> weights);
// Summaries of each sequence, side by side, and the layers behind them, if any. Its outputs are the same at all steps;
// a sequence without any step that counts has zeros. See fastseq.nn.Pool.
template <class T>
std::unique_ptr<Layer<T>> make_pooled(std::vector<Pooling> parts, std::int64_t features,
                                      std::vector<std::unique_ptr<Layer<T>>> head);
// For the first layer of a model: it returns no gradients of its inputs.
template <class T>
std::unique_ptr<Layer<T>> make_segment_rnn(const SegmentRnnOptions& options, SegmentRnnParts<T> parts);
// Models of equally many outputs, which come side by side; likewise for the first layer of a model.
template <class T>
std::unique_ptr<Layer<T>> make_members(std::vector<std::vector<std::unique_ptr<Layer<T>>>> members);

}  // namespace fastseq::step
