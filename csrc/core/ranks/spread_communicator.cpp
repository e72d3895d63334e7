#include "core/ranks/spread_communicator.h"

#include <array>
#include <cstring>
#include <new>

#include "core/base/pack.h"
#include "core/ranks/single_process.h"
#include "core/ranks/weighted_sum.h"

namespace fastseq {

Outcome SpreadCommunicator::agree(const Call& call) {
  standing_.check(rank_, call.operation);
  try {
    const Outcome outcome = combine(call);
    standing_.note(outcome);
    if (outcome.failed_rank >= 0) {
      const std::string message = message_of(outcome.failed_rank, failure_);
      if (call.operation == Operation::kFail || call.operation == Operation::kLeave) return outcome;
      throw RemoteFailure(outcome.failed_rank, message);
    }
    if (!outcome.same) throw CommunicationError(describe(call));
    return outcome;
  } catch (const CommunicationError& error) {
    standing_.end(error.what());
    throw;
  } catch (const std::bad_alloc& error) {  // others may go on from here, without this rank
    give_up(call.operation, error.what());
    throw;
  }
}

void SpreadCommunicator::give_up(Operation operation, const char* reason) {
  const Cause cause = current_cause(rank_, operation);
  break_up(cause.data());
  if (node_.group) node_.group->break_up(cause.data());
  standing_.end(reason);
}

Reduced SpreadCommunicator::allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) {
  Call call = allreduce_call(numel, dtype, reduction);
  const auto bytes = static_cast<std::size_t>(call.bytes);
  if (hierarchical()) call.place = node_.memory->place_of(data, bytes);
  const Outcome outcome = agree(call);
  call.place = outcome.place;  // else machines would exchange pieces of different lengths
  double factor = 1.0;
  if (reduction.mean) factor = call.weight == 0.0 ? 0.0 : call.weight / outcome.weight;
  return together(call.operation, [&] {
    if (hierarchical()) {
      hierarchical_sum({static_cast<std::byte*>(data), bytes}, dtype, factor, call);
    } else {
      sum_over_ranks(data, numel, dtype, factor);
    }
    Reduced reduced = reduced_of(outcome);
    // The ranks have the same bits, and get the same sum of them without another message.
    if (reduction.squares) reduced.sum_of_squares = facts_of(data, numel, dtype).sum_of_squares;
    return reduced;
  });
}

void SpreadCommunicator::hierarchical_sum(std::span<std::byte> data, DType dtype, double factor, const Call& call) {
  Call local = call;
  local.weight = factor;
  const std::vector<Call> calls = node_.group->exchange(local);
  std::vector<double> factors;
  factors.reserve(calls.size());
  for (const Call& each : calls) factors.push_back(each.weight);
  const std::size_t item = item_size(dtype);
  node_.memory->exchange(data, calls, [&](const Peers& peers, std::size_t /*first*/, std::size_t count) {
    if (node_.rank >= node_.slices) return 0.0;
    const Slice slice = slice_of(static_cast<std::int64_t>(count / item), dtype, node_.rank, node_.slices);
    const std::size_t start = static_cast<std::size_t>(slice.begin) * item;
    const std::int64_t numel = slice.end - slice.begin;
    std::vector<const void*> sources;
    sources.reserve(peers.size());
    for (const std::byte* peer : peers) sources.push_back(peer + start);
    std::byte* sum = peers[static_cast<std::size_t>(node_.rank)] + start;
    const std::array<void*, 1> destination = {sum};
    weighted_sum(sources, factors, numel, dtype, destination);
    sum_across(sum, numel, dtype);
    for (std::byte* peer : peers) {
      if (peer + start != sum) std::memcpy(peer + start, sum, static_cast<std::size_t>(numel) * item);
    }
    return 0.0;
  });
}

void SpreadCommunicator::broadcast(std::span<std::byte> data, int root) {
  check_root(root, size_);
  agree({.operation = Operation::kBroadcast, .bytes = static_cast<std::int64_t>(data.size()), .detail = root});
  together(Operation::kBroadcast, [&] { send_to_all(data, root); });
}

std::shared_ptr<std::byte> SpreadCommunicator::allocate(std::size_t bytes) {
  if (hierarchical()) node_.memory->check_numbers();
  agree({.operation = Operation::kAllocate, .bytes = static_cast<std::int64_t>(bytes)});
  return together(Operation::kAllocate, [&] {
    const auto shared = hierarchical() ? node_.memory->allocate(bytes) : nullptr;
    return shared ? shared : allocate_aligned(bytes);
  });
}

bool SpreadCommunicator::is_shared(const void* data, std::size_t bytes) const {
  return hierarchical() && node_.memory->place_of(data, bytes) != kPrivate;
}

void SpreadCommunicator::sum_over_nodes(void* data, std::int64_t numel, DType dtype) {
  together(Operation::kAllreduce, [&] { sum_across(data, numel, dtype); });
}

void SpreadCommunicator::fail(std::string_view message) {
  failure_ = message;
  agree({.operation = Operation::kFail});
}

void SpreadCommunicator::leave() {
  if (standing_.ended()) return;
  try {
    agree({.operation = Operation::kLeave});
  } catch (const CommunicationError&) {  // others continue
    standing_.end(exit_message(rank_));
  }
}

void SpreadCommunicator::interrupt() {
  if (node_.group) node_.group->interrupt();
}

}  // namespace fastseq
