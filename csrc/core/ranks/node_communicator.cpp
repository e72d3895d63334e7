#include "core/ranks/node_communicator.h"

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>

#include "core/base/pack.h"
#include "core/ranks/single_process.h"
#include "core/ranks/weighted_sum.h"

namespace fastseq {

NodeCommunicator::NodeCommunicator(Node node, std::function<void(int exit_code)> end_job)
    : owner_(std::move(node.owner)),
      group_(std::move(node.group)),
      memory_(std::move(node.memory)),
      end_job_(std::move(end_job)) {}

template <class Work>
auto NodeCommunicator::together(Operation operation, Work&& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    group_->break_up(current_cause(rank(), operation).data());
    standing_.end(error.what());
    throw;
  }
}

std::vector<Call> NodeCommunicator::agree(const Call& call, std::span<const std::byte> small) {
  standing_.check(rank(), call.operation);
  std::vector<Call> calls;
  try {
    calls = group_->exchange(call, small);
  } catch (const std::exception& error) {  // without memory it may not have arrived: then it can go on
    if (group_->broken_up()) standing_.end(error.what());
    throw;
  }
  const Outcome outcome = outcome_of(calls);
  together(call.operation, [&] { standing_.note(outcome); });  // else memory for the reason may lack, in silence
  if (outcome.failed_rank >= 0) {
    if (call.operation == Operation::kFail || call.operation == Operation::kLeave) return calls;
    throw RemoteFailure(outcome.failed_rank, group_->message_of(outcome.failed_rank));
  }
  if (!outcome.same) {
    const std::vector<Purpose> purposes = together(call.operation, [&] {
      const Purpose mine = purpose_of(purpose());
      std::vector<Purpose> all(calls.size());
      group_->exchange(call, std::as_bytes(std::span(mine)));
      for (int r = 0; r < size(); ++r) {
        std::memcpy(all[static_cast<std::size_t>(r)].data(), group_->small_of(r), mine.size());
      }
      return all;
    });
    throw CommunicationError(describe_disagreement(calls, purposes));
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
  if (small) {
    std::vector<const void*> sources;
    sources.reserve(calls.size());
    for (int r = 0; r < size(); ++r) sources.push_back(group_->small_of(r));
    weighted_sum(sources, factors_of(calls, reduction.mean), numel, dtype, {{data}});
    Reduced reduced = reduced_of(outcome_of(calls));
    if (reduction.squares) reduced.sum_of_squares = facts_of(data, numel, dtype).sum_of_squares;
    return reduced;
  }
  return together(call.operation, [&] {
    const std::vector<double> factors = factors_of(calls, reduction.mean);
    Reduced reduced = reduced_of(outcome_of(calls));
    reduced.sum_of_squares =
        memory_->exchange(all, calls, [&](const Peers& peers, std::size_t /*first*/, std::size_t count) {
          const Slice slice = slice_of(static_cast<std::int64_t>(count / item), dtype, rank(), size());
          std::vector<void*> parts;
          for (std::byte* peer : peers) parts.push_back(peer + static_cast<std::size_t>(slice.begin) * item);
          const std::vector<const void*> sources(parts.begin(), parts.end());
          const std::int64_t part = slice.end - slice.begin;
          if (reduction.squares) return weighted_sum_and_squares(sources, factors, part, dtype, parts);
          weighted_sum(sources, factors, part, dtype, parts);
          return 0.0;
        });
    return reduced;
  });
}

void NodeCommunicator::broadcast(std::span<std::byte> data, int root) {
  check_root(root, size());
  const auto bytes = static_cast<std::int64_t>(data.size());
  agree({.operation = Operation::kBroadcast, .bytes = bytes, .detail = root});
  together(Operation::kBroadcast, [&] { memory_->broadcast(data, root); });
}

void NodeCommunicator::barrier() { agree({.operation = Operation::kBarrier}); }

std::shared_ptr<std::byte> NodeCommunicator::allocate(std::size_t bytes) {
  memory_->check_numbers();
  agree({.operation = Operation::kAllocate, .bytes = static_cast<std::int64_t>(bytes)});
  return together(Operation::kAllocate, [&] {
    const auto shared = memory_->allocate(bytes);
    return shared ? shared : allocate_aligned(bytes);
  });
}

bool NodeCommunicator::is_shared(const void* data, std::size_t bytes) const {
  return memory_->place_of(data, bytes) != kPrivate;
}

std::vector<int> NodeCommunicator::node_ranks() const {
  std::vector<int> all(static_cast<std::size_t>(size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

void NodeCommunicator::fail(std::string_view message) {
  standing_.check(rank(), Operation::kFail);  // else the others may still be reading the last message
  group_->set_message(message);
  agree({.operation = Operation::kFail});
}

void NodeCommunicator::leave() {
  if (standing_.ended()) return;
  try {
    agree({.operation = Operation::kLeave});
  } catch (const CommunicationError&) {  // others continue
    standing_.end(exit_message(rank()));
  }
}

void NodeCommunicator::abort(int exit_code) {
  if (end_job_) end_job_(exit_code);
  group_->break_up(exit_message(rank()).c_str());
  std::_Exit(exit_code);
}

}  // namespace fastseq
