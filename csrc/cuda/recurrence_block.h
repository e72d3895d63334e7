// How blocks of threads run small recurrent layers: one or a few sequences each, from the first to the last step.
//
// A thread belongs to a row of the weights, that is, to a gate of a unit; two barriers separate the products of a step
// from its cells. Up to 64 units, a block has one sequence and each thread its weights in registers. Beyond that, the
// weights are read in each step, so a block has 16 bytes' worth of sequences, for which they are read once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "core/recurrence/cells.h"
#include "cuda/launch.h"
#include "cuda/recurrence_kernels.h"
#include "cuda/recurrence_steps.h"

namespace fastseq::cuda {

inline constexpr int kWarp = 32;
inline constexpr std::int64_t kMaxInputs = 1 << 20;  // what a grid has room for
inline constexpr std::int64_t kMaxSequences = (std::int64_t{1} << 31) - 1;
inline constexpr int kAhead = 8;  // pairs of a step and a sequence whose inputs' products a thread sums up at a time

template <class Acc>
inline constexpr Acc kNan = std::numeric_limits<Acc>::quiet_NaN();

// What a thread reads from shared memory at once.
template <class Acc>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(Acc));
template <class Acc>
struct alignas(16) Vector {
  Acc lanes[kLanes<Acc>];
};
template <class Acc>
__device__ const Vector<Acc>& vector_at(const Acc* shared) {
  return *reinterpret_cast<const Vector<Acc>*>(shared);
}
template <class Acc>
__device__ Acc lane_at(const Acc* shared, int i) {
  return vector_at(shared + i / kLanes<Acc> * kLanes<Acc>).lanes[i % kLanes<Acc>];
}

// How a cell's layer of T runs. kUnits: the weights that a thread has in registers; 0: none.
template <class T, class C, int kUnits>
struct Plan {
  using Acc = Compute<T>;
  static constexpr int kSequences = kUnits > 0 ? 1 : kLanes<Acc>;  // of a block
  static constexpr int kMaxThreads = C::kWeightGates * (kUnits > 0 ? kUnits : static_cast<int>(kMaxHidden));
  // Columns of weights in shared memory at a time; rows are one longer, so that threads read in different banks.
  static constexpr int kTile = 64 / static_cast<int>(sizeof(Acc));
  static constexpr int kItems = (kSequences + C::kWeightGates - 1) / C::kWeightGates;  // units of a thread, at most

  FASTSEQ_DEVICE static int rows(int hidden) { return C::kWeightGates * hidden; }
  FASTSEQ_DEVICE static int padded(int hidden) { return kUnits > 0 ? kUnits : hidden; }
  static unsigned blocks(std::int64_t sequences) {
    return static_cast<unsigned>((sequences + kSequences - 1) / kSequences);
  }
  static unsigned threads(int hidden) { return static_cast<unsigned>((rows(hidden) + kWarp - 1) / kWarp * kWarp); }
  static std::size_t forward_bytes(int hidden) {
    return sizeof(Acc) * static_cast<std::size_t>(padded(hidden) * kSequences + kTile * kAhead +
                                                  C::kGates * hidden * kSequences + rows(hidden) * (kTile + 1));
  }
  static std::size_t backward_bytes(int hidden) {
    return sizeof(Acc) * static_cast<std::size_t>(C::kGates * padded(hidden) * kSequences + rows(hidden) * kSequences);
  }
};

// A unit of a sequence, whose cell a thread runs. `at` is its place among the block's: those of a unit are adjacent.
struct Item {
  int at;
  int unit;
  std::int64_t n;
  std::int64_t length;
  bool exists;

  template <class P>
  __device__ static Item of(int k, int hidden, const Steps& steps, P /*plan*/) {
    Item item{};
    item.at = static_cast<int>(threadIdx.x + k * blockDim.x);
    item.unit = item.at / P::kSequences;
    item.n = static_cast<std::int64_t>(blockIdx.x) * P::kSequences + item.at % P::kSequences;
    item.exists = item.unit < hidden && item.n < steps.sequences;
    item.length = item.exists ? steps.length(item.n) : 0;
    return item;
  }
  // Its element in an array (…, sequences, hidden).
  __device__ std::int64_t element(std::int64_t row, const RecurrenceShape& s) const {
    return (row * s.sequences + n) * s.hidden + unit;
  }
};

// The longest length of a block's sequences.
template <int kSequences>
__device__ std::int64_t longest(const Steps& steps) {
  std::int64_t limit = 0;
  for (int r = 0; r < kSequences; ++r) {
    const std::int64_t length = steps.length(static_cast<std::int64_t>(blockIdx.x) * kSequences + r);
    limit = length > limit ? length : limit;
  }
  return limit;
}

// Calls fn.operator()<T, Cell, kUnits>() with the device's types of a layer, and the plan for its hidden units.
template <class Fn>
void dispatch_plan(const RecurrenceShape& s, const Fn& fn) {
  dispatch(s.dtype, [&]<class Host>(Type<Host>) {
    using T = DeviceType<Host>::type;
    const auto with_cell = [&]<class C>(Type<C>) {
      if (s.hidden <= 32) return fn.template operator()<T, C, 32>();
      if (s.hidden <= 64) return fn.template operator()<T, C, 64>();
      return fn.template operator()<T, C, 0>();
    };
    switch (s.cell) {
      case Cell::kLstm:
        return with_cell(Type<recurrence::Lstm>{});
      case Cell::kGru:
        return with_cell(Type<recurrence::Gru>{});
      case Cell::kTanhRnn:
        return with_cell(Type<recurrence::Rnn<false>>{});
      case Cell::kReluRnn:
        return with_cell(Type<recurrence::Rnn<true>>{});
    }
    throw std::invalid_argument("recurrence: unknown cell");
  });
}

// Raises unless the kernels can count what the layer has.
void check_shape(const RecurrenceShape& shape);

}  // namespace fastseq::cuda
