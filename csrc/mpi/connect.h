// Finds out where the ranks are and what they can use together, and makes the communicator that fits.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>

#include "core/ranks/communicator.h"

namespace fastseq {

struct ConnectOptions {
  // "auto": shared memory within a machine, hierarchy between machines, MPI messages where memory cannot be shared.
  // "shm", "hierarchy" or "mpi": that one, or a CommunicationError on all ranks.
  std::string transport = "auto";
  double timeout_seconds = 600;
  int ranks_per_node = 0;  // > 0: pretends that a machine with more ranks is several
  bool half_wire = false;  // fp32 goes between nodes as bf16
};

// Works on a duplicate of `parent`, so that its messages never meet the caller's. Collective over `parent`. Raises
// std::invalid_argument, on all ranks, if they give different options.
std::shared_ptr<Communicator> connect(MPI_Comm parent, const ConnectOptions& options);

}  // namespace fastseq
