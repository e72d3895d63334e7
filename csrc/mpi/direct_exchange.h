// Sums over ranks by direct exchange: every rank gets its slice of all others' data, adds in the order of the ranks,
// and sends the sum to all. Each rank sends and receives 2 (size - 1) / size of the data, both ways at once, and the
// result does not depend on the MPI library's choice of algorithm.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "mpi/mpi_agreement.h"

namespace fastseq {

// data[i] becomes the sum over ranks r of factors[r] * data[i] of rank r; 16-bit data are added in fp32 and rounded
// once. Collective over `comm`. Raises what `agreement` raises while it waits; MPI may then still read the data, but no
// longer write to them.
void direct_exchange(MPI_Comm comm, MpiAgreement& agreement, void* data, std::int64_t numel, DType dtype,
                     std::span<const double> factors);

}  // namespace fastseq
