// Recurrent layers: all time steps of one layer and direction in one call, forward and backward.
//
// Formulas and the order of gates are torch's (torch.nn.LSTM, GRU and RNN): i, f, g, o and r, z, n. Time-major.
// Sequences are independent, so threads divide them; no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/parallel.h"

namespace fastseq {

enum class Cell : std::uint8_t { kLstm, kGru, kTanhRnn, kReluRnn };

constexpr std::int64_t gate_count(Cell cell) { return cell == Cell::kLstm ? 4 : cell == Cell::kGru ? 3 : 1; }

struct RecurrenceShape {
  Cell cell;
  DType dtype;  // fp32 or fp64
  std::int64_t steps;
  std::int64_t sequences;
  std::int64_t inputs;  // features of x
  std::int64_t hidden;
  bool reverse;       // from the last step to the first
  bool bf16 = false;  // factors of products are rounded to bf16; their sums, and all else, are in fp32
};

// Inputs of forward, and of backward. Matrices are contiguous unless they have strides, which are in elements.
struct RecurrenceInputs {
  const void* x;  // (steps, sequences, inputs); each step's and sequence's features are contiguous
  std::int64_t x_step;
  std::int64_t x_sequence;
  const void* w_ih;             // (gates * hidden, inputs)
  const void* w_hh;             // (gates * hidden, hidden)
  const void* b_ih;             // (gates * hidden), or null: no biases
  const void* b_hh;             // like b_ih
  const void* h0;               // (sequences, hidden)
  const void* c0;               // (sequences, hidden), LSTM only
  const std::int64_t* lengths;  // (sequences), each 0 to steps, or null: all steps count. After a sequence's end its
                                // state stays constant and its output is 0; x is not read
};

struct RecurrenceOutputs {
  void* y;      // (steps, sequences, hidden)
  void* h;      // (sequences, hidden), the last state
  void* c;      // (sequences, hidden), LSTM only
  void* saved;  // saved_numel elements for backward, or null
};

// Number of elements backward needs besides inputs and y: per step, sequence and hidden unit 5 for an LSTM, 4 for a
// GRU, none for an RNN; hidden units are rounded up to fill 64 bytes.
std::int64_t saved_numel(const RecurrenceShape& shape);

void recurrence_forward(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const RecurrenceOutputs& outputs,
                        ParallelFor parallel_for);

struct RecurrenceGradients {
  const void* y;  // as forward wrote them
  const void* saved;
  const void* dy;  // gradients of outputs, in their shapes, or null: zero
  const void* dh;
  const void* dc;
  void* dx;  // gradients of inputs, contiguous, or null: not needed
  void* dw_ih;
  void* dw_hh;
  void* db_ih;
  void* db_hh;
  void* dh0;
  void* dc0;
};

void recurrence_backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                         const RecurrenceGradients& gradients, ParallelFor parallel_for);

}  // namespace fastseq
