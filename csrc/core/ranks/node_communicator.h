// The communicator of ranks on one machine: all data move through shared memory.
//
// tests/campaigns/protocol/agreement.pml and exchange.pml are models of it, checked in all their orders.
#pragma once

#include <functional>

#include "core/ranks/communicator.h"
#include "core/ranks/node_link.h"

namespace fastseq {

class NodeCommunicator final : public Communicator {
 public:
  // `node` must share memory. `end_job` ends the processes of all ranks; null: nothing can, and `abort` tells them.
  NodeCommunicator(Node node, std::function<void(int exit_code)> end_job);

  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  int local_rank() const override { return rank(); }
  int local_size() const override { return size(); }
  std::string_view transport() const override { return "shm"; }
  bool any_thread() const override { return true; }

  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override;
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  bool is_shared(const void* data, std::size_t bytes) const override;
  std::vector<int> node_ranks() const override;
  void fail(std::string_view message) override;
  void leave() override;
  void interrupt() override { group_->interrupt(); }
  [[noreturn]] void abort(int exit_code) override;

 private:
  // Shows `call` to all ranks; raises RemoteFailure or CommunicationError unless all make the same call.
  std::vector<Call> agree(const Call& call, std::span<const std::byte> small = {});
  // Runs what all ranks have agreed on: a rank that fails in it cannot report that in place of its next call.
  template <class Work>
  auto together(Operation operation, Work&& work);

  std::shared_ptr<void> owner_;  // outlives the others
  std::unique_ptr<NodeGroup> group_;
  std::unique_ptr<NodeMemory> memory_;
  std::function<void(int)> end_job_;
  Standing standing_;
};

}  // namespace fastseq
