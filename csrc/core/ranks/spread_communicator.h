// The communicator of ranks on several machines. On each machine sums go through shared memory, and each sum is sent
// between machines once; where memory cannot be shared, all ranks exchange messages. Derived classes send them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/ranks/agreement.h"
#include "core/ranks/communicator.h"
#include "core/ranks/node_link.h"

namespace fastseq {

class SpreadCommunicator : public Communicator {
 public:
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return node_.rank; }
  int local_size() const override { return node_.size; }

  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override { agree({.operation = Operation::kBarrier}); }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  bool is_shared(const void* data, std::size_t bytes) const override;
  std::vector<int> node_ranks() const override { return hierarchical() ? node_.group->names() : std::vector{rank_}; }
  int slices() const override { return node_.slices; }
  void sum_over_nodes(void* data, std::int64_t numel, DType dtype) override;
  void fail(std::string_view message) override;
  void leave() override;
  void interrupt() override;

 protected:
  SpreadCommunicator(int rank, int size, Node node) : rank_(rank), size_(size), node_(std::move(node)) {}

  bool hierarchical() const { return node_.memory != nullptr; }
  const Node& node() const { return node_; }
  // Checks that all ranks make the same call; raises RemoteFailure or CommunicationError if not.
  Outcome agree(const Call& call);
  // Runs what all ranks have agreed on: a rank that fails in it cannot report that in place of its next call.
  template <class Work>
  auto together(Operation operation, Work&& work) {
    try {
      return work();
    } catch (const std::exception& error) {
      give_up(operation, error.what());
      throw;
    }
  }

  // What the derived classes send. All ranks call the same, in the same order.

  // All ranks' combined calls. Raises CommunicationError if ranks do not arrive in time.
  virtual Outcome combine(const Call& call) = 0;
  // Every rank's call and purpose, as one sentence on their disagreement.
  virtual std::string describe(const Call& call) = 0;
  // The failed rank's message, on every rank; `own` is this rank's.
  virtual std::string message_of(int failed_rank, const std::string& own) = 0;
  // Replaces data by root's.
  virtual void send_to_all(std::span<std::byte> data, int root) = 0;
  // data[i] becomes the sum of all ranks' factor * data[i].
  virtual void sum_over_ranks(void* data, std::int64_t numel, DType dtype, double factor) = 0;
  // data[i] becomes its sum over the ranks with this one's number on their machines, if that is one of the `slices`.
  virtual void sum_across(void* data, std::int64_t numel, DType dtype) = 0;
  // Informs all other ranks that they cannot continue.
  virtual void break_up(const char* cause) noexcept = 0;

 private:
  // In a handler of an error: all ranks learn of it.
  void give_up(Operation operation, const char* reason);
  void hierarchical_sum(std::span<std::byte> data, DType dtype, double factor, const Call& call);

  int rank_;
  int size_;
  Node node_;
  Standing standing_;
  std::string failure_;
};

}  // namespace fastseq
