// Training steps of a model of recurrent, linear and elementwise layers, without autograd: forward, loss, backward, the
// average over ranks, clipping and the optimizer's update for one chunk after another, in one call.
//
// Parameters, their optimizer's state and the state that is carried lie in memory of the caller, who sees them up to
// date after each call. Gradients lie there, too; with several ranks where these read them. Results do not depend on
// the number of threads.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/ranks/bucketizer.h"
#include "core/step/buffer.h"
#include "core/step/loss.h"
#include "core/step/model.h"
#include "core/step/update.h"

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

// Of a trained parameter; null: it is frozen for now.
template <class T>
struct Gradient {
  T* fresh;  // where its layer writes a chunk's
  T* held;   // the parameter's own: the same, or, where several chunks make an update, their sum
  std::int64_t numel;
};

// What is held for the next update: sums over chunks, times their weights.
struct Held {
  std::int64_t chunks = 0;
  double weight = 0;
  double loss = 0;
};

// What an update came to: the mean over the samples of its chunks, on all ranks.
struct Done {
  double loss;
  double weight;  // 0: nothing was updated
};

enum class End : std::uint8_t {
  kAll,
  kPaused,             // after an update: the caller should look around
  kNotFinite,          // a loss
  kNonfiniteGradient,  // on a rank
  kBadLabel,           // one that is no class
};

struct Outcome {
  End end;
  std::int64_t chunks;     // that were trained on
  double loss = 0;         // that was not finite
  int rank = -1;           // whose gradient was not finite
  bool attention = false;  // whether a rank asked for it
};

template <class T>
class Step {
 public:
  // `gradients`: in the order of the bucketizer, which is null for one rank. `chunks`: how many make an update.
  // `bf16`: see Chunk. What is passed by reference must outlive this.
  Step(Model<T>& model, Loss loss, const Update<T>& update, std::int64_t chunks, std::vector<Gradient<T>> gradients,
       Bucketizer* buckets, bool bf16 = false);

  // Trains on one chunk after another, until one cannot be trained on, or a rank asks for attention, or for a time that
  // a person hardly notices. If a chunk cannot be trained on, the parameters are those before it, the state is not.
  // Adds updates to `done`; `held`: what is held before, and after. Errors of other ranks are raised.
  Outcome train(const Chunks<T>& chunks, std::span<const Settings> settings, const Clipping& clipping, bool attention,
                Held& held, std::vector<Done>& done);

 private:
  // A chunk of `chunks`, and its data.
  struct Part {
    Chunk chunk;
    Rows<T> x;
    Targets<T> targets;
  };
  Part part(const Chunks<T>& chunks, std::size_t index, std::int64_t begin);
  bool accumulates() const { return chunks_ > 1; }
  void hold(const Chunk& chunk, double weight, bool adds);
  Bucketizer::Result average(const Chunk& chunk, double weight, double loss, bool attention);

  Model<T>& model_;
  Loss loss_;
  const Update<T>& update_;
  std::int64_t chunks_;
  std::vector<Gradient<T>> gradients_;
  Bucketizer* buckets_;
  bool bf16_;
  std::unordered_map<const T*, std::int64_t> numbers_;  // of gradients, by where layers write them
  std::vector<std::int64_t> lengths_;
  Buffer<T> dy_;
};

}  // namespace fastseq::step
