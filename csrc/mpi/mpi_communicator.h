// The communicator over MPI messages, for ranks on several machines: transport "mpi" sends everything by MPI_Allreduce;
// "hierarchy" sums within each node through shared memory, and sends each sum between nodes once.
#pragma once

#include <mpi.h>

#include <string>
#include <vector>

#include "core/ranks/communicator.h"
#include "core/ranks/node_memory.h"
#include "mpi/mpi_agreement.h"

namespace fastseq {

// The version text of the linked MPI library.
std::string mpi_library_version();

// The ranks of this node, and those with this rank's number on the other nodes.
struct Node {
  int rank = 0;
  int size = 1;
  std::shared_ptr<void> owner;  // keeps the slots' memory alive
  std::unique_ptr<NodeGroup> group;
  std::unique_ptr<NodeMemory> memory;  // null: the ranks share no memory
  MPI_Comm across = MPI_COMM_NULL;     // ranks with this number on all nodes; null if a node has none
  int slices = 0;                      // the smallest node's size: that many ranks exchange between nodes
};

class MpiCommunicator final : public Communicator {
 public:
  // Uses `comm`, which nothing else may use. It is not freed with this object: freeing is collective, and objects die
  // at different times on different ranks. MPI_Finalize frees it. With `half_wire`, fp32 is sent between nodes as bf16.
  MpiCommunicator(MPI_Comm comm, Node node, std::chrono::duration<double> timeout, bool half_wire);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return node_.rank; }
  int local_size() const override { return node_.size; }
  std::string_view transport() const override { return hierarchical() ? "hierarchy" : "mpi"; }
  bool any_thread() const override;

  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override;
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  bool is_shared(const void* data, std::size_t bytes) const override;
  std::vector<int> node_ranks() const override { return hierarchical() ? node_.group->names() : std::vector{rank_}; }
  int slices() const override { return node_.slices; }
  void sum_over_nodes(void* data, std::int64_t numel, DType dtype) override;
  std::string device_problem() const override;
  void sum_on_device(void* data, std::int64_t numel, DType dtype) override;
  void fail(std::string_view message) override;
  void leave() override;
  void interrupt() override;
  [[noreturn]] void abort(int exit_code) override;

 private:
  bool hierarchical() const { return node_.memory != nullptr; }
  // Checks that all ranks make the same call; raises RemoteFailure or CommunicationError if not.
  Outcome agree(const Call& call);
  // Runs what all ranks have agreed on: a rank that fails in it cannot report that in place of its next call.
  template <class Work>
  auto together(Operation operation, Work&& work);
  void flat_sum(void* data, std::int64_t numel, DType dtype, double factor);
  void hierarchical_sum(std::span<std::byte> data, DType dtype, double factor, const Call& call);
  void sum_across(void* data, std::int64_t numel, DType dtype);
  void plain_sum(MPI_Comm comm, void* data, std::int64_t numel, DType dtype);

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  Node node_;
  bool half_wire_;
  MpiAgreement agreement_;
  Standing standing_;
  std::string failure_;
};

}  // namespace fastseq
