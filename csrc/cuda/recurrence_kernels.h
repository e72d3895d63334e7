// core/recurrence/recurrence.h on a GPU: the same layers, on device pointers (lengths, too), in the order of a stream.
// Nothing is synchronised.
//
// dtype may also be fp16 or bf16: for storage, while sums, the state between steps and what backward needs are fp32.
// Nobody can look at lengths before they are used: one that is not from 0 to steps makes its sequence's state NaN.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/recurrence/recurrence.h"

namespace fastseq::cuda {

inline constexpr std::int64_t kMaxHidden = 128;

// Number of elements backward needs besides inputs and y, fp64 in an fp64 layer, else fp32: as core's, but without
// rounding up.
std::int64_t saved_numel(const RecurrenceShape& shape);

// Number of elements of the same type of scratch memory for backward.
std::int64_t backward_scratch(const RecurrenceShape& shape);

void recurrence_forward(const RecurrenceShape& shape, const RecurrenceInputs& inputs, const RecurrenceOutputs& outputs,
                        cudaStream_t stream);

void recurrence_backward(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                         const RecurrenceGradients& gradients, void* scratch, cudaStream_t stream);

}  // namespace fastseq::cuda
