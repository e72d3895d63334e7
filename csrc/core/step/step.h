// Training steps of a model of recurrent, linear and elementwise layers, without autograd: forward, loss, backward,
// clipping and the optimizer's update for one chunk after another, in one call.
//
// Parameters, their optimizer's state and the state that is carried lie in memory of the caller, who sees them up to
// date after each call. Gradients lie there, too. Results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/step/buffer.h"
#include "core/step/layer.h"
#include "core/step/loss.h"
#include "core/step/optimizer.h"

namespace fastseq::step {

// Chunks that follow each other in time.
template <class T>
struct Chunks {
  Rows<T> x;
  Targets<T> targets;
  std::span<const std::int64_t> sizes;  // time steps of each chunk
  std::int64_t sequences;
  const std::int64_t* lengths;           // steps of each sequence that count, from the first chunk on, or null: all
  std::span<const std::uint64_t> seeds;  // of each chunk's dropout
};

struct Clipping {
  std::optional<double> value;  // of each element
  std::optional<double> norm;   // of all gradients
};

// Several chunks for one update: gradients of each are added to those held.
template <class T>
struct Accumulation {
  struct Gradient {
    const T* fresh;  // where layers write it
    T* held;         // the parameter's gradient
    std::int64_t numel;
  };
  std::int64_t chunks = 1;
  std::vector<Gradient> gradients;
};

// What is held for the next update: sums over chunks, times their weights.
struct Held {
  std::int64_t chunks = 0;
  double weight = 0;
  double loss = 0;
};

// What an update came to: the mean over the samples of its chunks.
struct Done {
  double loss;
  double weight;  // 0: nothing was updated
};

enum class End : std::uint8_t { kAll, kNotFinite, kBadLabel };

struct Outcome {
  End end;
  double loss;          // with which it ended, if it was not finite
  std::int64_t chunks;  // that were trained on
};

template <class T>
class Step {
 public:
  // Layers in their order; parameters: those that the optimizer updates.
  Step(std::vector<std::unique_ptr<Layer<T>>> layers, LossKind loss, double loss_parameter, OptimizerKind optimizer,
       std::vector<Parameter<T>> parameters, Accumulation<T> accumulation, ParallelFor parallel_for);

  std::int64_t outputs() const { return layers_.back()->outputs(); }

  // Memory for the state of `sequences` sequences: for each layer that has one, in order, h and perhaps c.
  void set_state(std::span<T* const> state);

  // Trains on one chunk after another, until one cannot be trained on: its loss is not finite, or it has a label that
  // is no class. Then the parameters are those before that chunk, the state is not. Adds updates to `done`; `held`:
  // what is held before, and after.
  Outcome train(const Chunks<T>& chunks, std::span<const Settings> settings, const Clipping& clipping, Held& held,
                std::vector<Done>& done);

 private:
  // Returns the outputs of all layers.
  const T* forward(const Chunk& chunk, const Rows<T>& x);
  void backward(const Chunk& chunk);
  void hold(double weight, const Held& held);
  void release(double weight);
  void clip(const Clipping& clipping);

  std::vector<std::unique_ptr<Layer<T>>> layers_;
  LossKind loss_;
  double loss_parameter_;
  OptimizerKind optimizer_;
  std::vector<Parameter<T>> parameters_;
  Accumulation<T> accumulation_;
  ParallelFor parallel_for_;
  std::vector<Rows<T>> given_;  // to each layer
  std::vector<std::int64_t> lengths_;
  Buffer<T> dy_;
};

}  // namespace fastseq::step
