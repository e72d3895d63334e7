#include "core/node_communicator.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/single_process.h"
#include "core/weighted_sum.h"

namespace fastseq {

NodeCommunicator::NodeCommunicator(std::unique_ptr<NodeGroup> group, std::unique_ptr<NodeMemory> memory,
                                   std::shared_ptr<void> owner, std::function<void(int exit_code)> end_job)
    : owner_(std::move(owner)), group_(std::move(group)), memory_(std::move(memory)), end_job_(std::move(end_job)) {}

std::vector<Call> NodeCommunicator::agree(const Call& call, std::span<const std::byte> small) {
  if (out_of_step_) throw CommunicationError(out_of_step_message(rank(), call.operation));
  std::vector<Call> calls;
  try {
    calls = group_->exchange(call, small);
  } catch (const CommunicationError&) {
    out_of_step_ = true;
    throw;
  }
  const Outcome outcome = outcome_of(calls);
  if (outcome.failed_rank >= 0) {
    if (call.operation == Operation::kFail) return calls;
    throw RemoteFailure(outcome.failed_rank, group_->message_of(outcome.failed_rank));
  }
  if (!outcome.same) {
    out_of_step_ = true;
    if (call.operation != Operation::kLeave) throw CommunicationError(describe_disagreement(calls));
  }
  return calls;
}

Reduced NodeCommunicator::allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) {
  const std::size_t item = item_size(dtype);
  const std::size_t bytes = static_cast<std::size_t>(numel) * item;
  const std::span<std::byte> all(static_cast<std::byte*>(data), bytes);
  const bool small = bytes <= NodeGroup::kSmallBytes;
  Call call = allreduce_call(numel, dtype, reduction);
  call.place = small ? kPrivate : memory_->place_of(data, bytes);
  const std::vector<Call> calls = agree(call, small ? all : std::span<std::byte>());
  const Reduced reduced = reduced_of(outcome_of(calls));
  const std::vector<double> factors = factors_of(calls, reduction.mean);
  if (small) {
    std::vector<const void*> sources;
    sources.reserve(calls.size());
    for (int r = 0; r < size(); ++r) sources.push_back(group_->small_of(r));
    weighted_sum(sources, factors, numel, dtype, {{data}});
    return reduced;
  }
  memory_->exchange(all, calls, [&](const Peers& peers, std::size_t /*first*/, std::size_t count) {
    const Slice slice = slice_of(static_cast<std::int64_t>(count / item), dtype, rank(), size());
    std::vector<void*> parts;
    for (std::byte* peer : peers) parts.push_back(peer + static_cast<std::size_t>(slice.begin) * item);
    const std::vector<const void*> sources(parts.begin(), parts.end());
    weighted_sum(sources, factors, slice.end - slice.begin, dtype, parts);
  });
  return reduced;
}

void NodeCommunicator::broadcast(std::span<std::byte> data, int root) {
  check_root(root, size());
  const auto bytes = static_cast<std::int64_t>(data.size());
  agree({.operation = Operation::kBroadcast, .bytes = bytes, .detail = root});
  memory_->broadcast(data, root);
}

void NodeCommunicator::barrier() { agree({.operation = Operation::kBarrier}); }

std::shared_ptr<std::byte> NodeCommunicator::allocate(std::size_t bytes) {
  agree({.operation = Operation::kAllocate, .bytes = static_cast<std::int64_t>(bytes)});
  const auto shared = memory_->allocate(bytes);
  return shared ? shared : allocate_aligned(bytes);
}

bool NodeCommunicator::is_shared(const void* data, std::size_t bytes) const {
  return memory_->place_of(data, bytes) != kPrivate;
}

void NodeCommunicator::fail(std::string_view message) {
  group_->set_message(message);
  agree({.operation = Operation::kFail});
}

void NodeCommunicator::leave() {
  if (out_of_step_) return;
  agree({.operation = Operation::kLeave});
  out_of_step_ = true;
}

void NodeCommunicator::abort(int exit_code) {
  end_job_(exit_code);
  std::_Exit(exit_code);
}

}  // namespace fastseq
