// Layers one after another.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/step/layer.h"

namespace fastseq::step {

template <class T>
class Model {
 public:
  // At least one layer.
  Model(std::vector<std::unique_ptr<Layer<T>>> layers, ParallelFor parallel_for);

  std::int64_t outputs() const { return layers_.back()->outputs(); }
  ParallelFor parallel_for() const { return parallel_for_; }
  // Where `backward` sets gradients.
  std::vector<T*> gradients() const;

  std::int64_t state_count() const;
  // Memory for the state of a chunk's sequences: for each layer that has one, in order, h and perhaps c.
  void set_state(std::span<T* const> state);

  // Returns the outputs, contiguous; they stay until the next call.
  const T* forward(const Chunk& chunk, const Rows<T>& x);
  // Of the last forward. dy: contiguous, is overwritten. Calls `ready` with the gradients of each layer once they are
  // set. Returns those of x, contiguous, or null if they are not wanted.
  T* backward(const Chunk& chunk, T* dy, const std::function<void(std::span<T* const> gradients)>& ready,
              bool wants_dx = false);

 private:
  std::vector<std::unique_ptr<Layer<T>>> layers_;
  std::vector<std::vector<T*>> gradients_;  // of each layer
  ParallelFor parallel_for_;
  std::vector<Rows<T>> given_;  // to each layer
};

}  // namespace fastseq::step
