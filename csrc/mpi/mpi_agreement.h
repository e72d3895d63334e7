// How ranks agree on a call by messages: what core/node_group.h does in shared memory.
#pragma once

#include <mpi.h>

#include <chrono>
#include <string>
#include <vector>

#include "core/agreement.h"

namespace fastseq {

class MpiAgreement {
 public:
  // Works on `comm`, which outlives it, and which carries nothing else meanwhile. Collective.
  MpiAgreement(MPI_Comm comm, std::chrono::duration<double> timeout);

  // Tells all ranks `call` and returns what they say together. Raises CommunicationError, naming the missing ranks, if
  // some do not come within the timeout.
  Outcome agree(const Call& call);
  // Every rank's call, to describe a disagreement.
  std::vector<Call> all_calls(const Call& call) const;
  // The failed rank's message, on every rank; `own` is this rank's.
  std::string message_of(int failed_rank, const std::string& own) const;

 private:
  void wait(MPI_Request& request);
  // Ranks that wait too answer each other; those that don't are missing.
  void answer_questions() const;
  std::string missing_ranks();

  MPI_Comm comm_;
  std::chrono::duration<double> timeout_;
  int rank_ = 0;
  int size_ = 1;
  MPI_Op combine_ = MPI_OP_NULL;
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

}  // namespace fastseq
