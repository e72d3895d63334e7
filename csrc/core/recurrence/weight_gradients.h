// Gradients of a recurrent layer's weights and biases: sums over all steps and sequences, always in the same order.
#pragma once

#include "core/base/parallel.h"
#include "core/recurrence/recurrence.h"

namespace fastseq::recurrence {

// d: gradients of the cells' sums, [step][panel][sequence][sum][L]; see tiles.h.
void weight_gradients(const RecurrenceShape& shape, const RecurrenceInputs& inputs,
                      const RecurrenceGradients& gradients, const void* d, ParallelFor parallel_for);

}  // namespace fastseq::recurrence
