// Finds out where the ranks are and which transport they share, and makes the communicator.
#pragma once

#include <mpi.h>

#include <memory>
#include <string>

#include "core/ranks/communicator.h"

namespace fastseq {

struct ConnectOptions {
  // "auto": shared memory within a machine, hierarchy between machines, MPI messages if memory cannot be shared.
  // "shm", "hierarchy" or "mpi": that one, or a CommunicationError on all ranks.
  std::string transport = "auto";
  double timeout_seconds = 600;
  int ranks_per_node = 0;  // > 0: treats a machine with more ranks as several
  bool half_wire = false;  // fp32 is sent between nodes as bf16
};

// Uses a duplicate of `parent`, so that its messages never mix with the caller's. Collective over `parent`. Raises
// std::invalid_argument, on all ranks, if their options differ.
std::shared_ptr<Communicator> connect(MPI_Comm parent, const ConnectOptions& options);

}  // namespace fastseq
