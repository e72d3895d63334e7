// Gradients of a recurrent layer's inputs and weights: products of d, the gradients of the cells' sums at all steps,
// [step][sequence][sum][unit], zero where a sequence has ended. d is the begin of backward's scratch memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/recurrence/recurrence.h"

namespace fastseq::cuda {

std::int64_t d_numel(const RecurrenceShape& shape);
// Of sums over parts of the steps and sequences, which come after d.
std::int64_t partial_numel(const RecurrenceShape& shape);

void input_gradients(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const RecurrenceGradients& gradients,
                     const void* scratch, cudaStream_t stream);

// The sums over all steps and sequences are added up in an order that depends on the shape alone.
void weight_gradients(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                      const RecurrenceGradients& gradients, void* scratch, cudaStream_t stream);

}  // namespace fastseq::cuda
