#include "mpi/connect.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <span>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/ranks/node_communicator.h"
#include "core/ranks/node_link.h"
#include "mpi/mpi_agreement.h"
#include "mpi/mpi_calls.h"
#include "mpi/mpi_communicator.h"

namespace fastseq {

namespace {

using Seconds = std::chrono::duration<double>;

// A rank's options, one per line.
using Wishes = std::array<char, 256>;

bool on_all_ranks(MPI_Comm comm, bool condition) {
  int all = condition ? 1 : 0;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &all, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce");
  return all != 0;
}

MPI_Comm split_nodes(MPI_Comm comm, int ranks_per_node) {
  MPI_Comm machine = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
  if (ranks_per_node <= 0) return machine;
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(machine, rank_in(machine) / ranks_per_node, 0, &node), "MPI_Comm_split");
  check_mpi(MPI_Comm_free(&machine), "MPI_Comm_free");
  return node;
}

// Gives the node its group and its memory, on all ranks of `comm` or on none.
void share_memory(MPI_Comm comm, MPI_Comm node_comm, Seconds timeout, Node& node) {
  NodeLink link(rank_in(comm));
  const SlotAddress own = link.address();
  std::vector<SlotAddress> addresses(static_cast<std::size_t>(node.size));
  check_mpi(MPI_Allgather(&own, sizeof own, MPI_BYTE, addresses.data(), sizeof own, MPI_BYTE, node_comm),
            "MPI_Allgather");
  const bool opened = link.open(addresses, node.rank);
  if (!on_all_ranks(comm, opened)) return;
  Node joined = link.join(timeout);
  if (on_all_ranks(comm, joined.memory != nullptr)) node = std::move(joined);
}

// The ranks with this one's number on all machines; null if a machine has none.
MPI_Comm connect_nodes(MPI_Comm comm, Node& node) {
  node.slices = node.size;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &node.slices, 1, MPI_INT, MPI_MIN, comm), "MPI_Allreduce");
  const int color = node.rank < node.slices ? node.rank : MPI_UNDEFINED;
  MPI_Comm across = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(comm, color, 0, &across), "MPI_Comm_split");
  if (across != MPI_COMM_NULL) {
    check_mpi(MPI_Comm_set_errhandler(across, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  return across;
}

MPI_Comm duplicate(MPI_Comm parent, Seconds timeout) {
  Landing<MPI_Request> request(MPI_REQUEST_NULL);
  Landing<MPI_Comm> made(MPI_COMM_NULL);
  check_mpi(MPI_Comm_idup(parent, &*made, &*request), "MPI_Comm_idup");
  const auto deadline = std::chrono::steady_clock::now() + clock_time(timeout);
  for (int done = 0; done == 0;) {
    check_mpi(MPI_Test(&*request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done == 0 && std::chrono::steady_clock::now() > deadline) {
      throw CommunicationError(timeout_message(rank_in(parent), timeout.count(), "all ranks to make a communicator"));
    }
    if (done == 0) std::this_thread::yield();
  }
  request.end();
  made.end();
  MPI_Comm comm = *made;
  check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return comm;
}

Wishes wishes_of(const ConnectOptions& options) {
  Wishes wishes{};
  std::snprintf(wishes.data(), wishes.size(), "transport=%s\ntimeout=%g\nranks_per_node=%d\nwire_dtype=%s\n",
                options.transport.c_str(), options.timeout_seconds, options.ranks_per_node,
                options.half_wire ? "bfloat16" : "float32");
  return wishes;
}

// Raises std::invalid_argument, on all ranks, unless all have the same options.
void compare(std::span<const Wishes> wishes) {
  for (std::size_t r = 1; r < wishes.size(); ++r) {
    std::istringstream first(wishes.front().data());
    std::istringstream other(wishes[r].data());
    std::string ours;
    std::string theirs;
    while (std::getline(first, ours) && std::getline(other, theirs)) {
      if (ours == theirs) continue;
      std::ostringstream message;
      message << "the ranks want different communicators: rank 0 has " << ours << ", rank " << r << " " << theirs
              << "; give all ranks the same options";
      throw std::invalid_argument(message.str());
    }
  }
}

}  // namespace

std::shared_ptr<Communicator> connect(MPI_Comm parent, const ConnectOptions& options) {
  const std::string& wanted = options.transport;
  if (constexpr std::array kKnown = {"auto", "shm", "hierarchy", "mpi"};
      std::ranges::find(kKnown, wanted) == kKnown.end()) {
    throw CommunicationError("transport must be auto, shm, hierarchy or mpi, got " + wanted);
  }
  const Seconds timeout(options.timeout_seconds);
  MPI_Comm comm = duplicate(parent, timeout);
  compare(MpiAgreement(comm, timeout).gather(wishes_of(options)));
  MPI_Comm node_comm = split_nodes(comm, options.ranks_per_node);
  Node node;
  node.rank = rank_in(node_comm);
  node.size = size_of(node_comm);
  const bool one_node = on_all_ranks(comm, node.size == size_of(comm));
  if (wanted == "shm" && !one_node) throw CommunicationError("transport \"shm\" needs all ranks on one machine");
  // While ranks wait for one on their machine, that one may be waiting for another machine: it knows better who is
  // missing, so it must time out first.
  const bool alone = one_node && wanted != "hierarchy";
  if (wanted != "mpi") share_memory(comm, node_comm, alone ? timeout : timeout + 2 * MpiAgreement::kAnswerTime, node);
  check_mpi(MPI_Comm_free(&node_comm), "MPI_Comm_free");
  if (wanted != "mpi" && wanted != "auto" && !node.memory) {
    throw CommunicationError("transport \"" + wanted +
                             "\" needs memory that the ranks of a machine can share: the machine has none left, or its "
                             "ranks run in separate containers or as different users");
  }
  if (node.memory && alone) {
    return std::make_shared<NodeCommunicator>(std::move(node), [comm](int exit_code) { MPI_Abort(comm, exit_code); });
  }
  MPI_Comm across = node.memory ? connect_nodes(comm, node) : MPI_COMM_NULL;
  return std::make_shared<MpiCommunicator>(comm, std::move(node), across, timeout, options.half_wire);
}

}  // namespace fastseq
