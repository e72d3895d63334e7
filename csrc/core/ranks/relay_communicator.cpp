#include "core/ranks/relay_communicator.h"

#include <array>
#include <cstdlib>
#include <vector>

#include "core/base/pack.h"
#include "core/ranks/weighted_sum.h"

namespace fastseq {

namespace {

// What a rank says when the ranks agree, and when they disagree.
struct Statement {
  Call call;
  Purpose purpose;
};

template <class T>
std::vector<T> gathered(Relay& relay, const T& mine, int size) {
  std::vector<T> all(static_cast<std::size_t>(size));
  relay.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return all;
}

}  // namespace

Outcome RelayCommunicator::combine(const Call& call) { return outcome_of(gathered(*relay_, call, size())); }

std::string RelayCommunicator::describe(const Call& call) {
  std::vector<Call> calls;
  std::vector<Purpose> purposes;
  for (const Statement& said : gathered(*relay_, Statement{.call = call, .purpose = purpose_of(purpose())}, size())) {
    calls.push_back(said.call);
    purposes.push_back(said.purpose);
  }
  return describe_disagreement(calls, purposes);
}

std::string RelayCommunicator::message_of(int failed_rank, const std::string& own) {
  std::array<char, NodeGroup::kMaxMessage> text{};
  if (rank() == failed_rank) own.copy(text.data(), text.size() - 1);
  relay_->broadcast(std::as_writable_bytes(std::span(text)), failed_rank);
  return text.data();
}

void RelayCommunicator::send_to_all(std::span<std::byte> data, int root) {
  if (!data.empty()) relay_->broadcast(data, root);
}

void RelayCommunicator::sum_over_ranks(void* data, std::int64_t numel, DType dtype, double factor) {
  sum(data, numel, dtype, factor, false);
}

void RelayCommunicator::sum(void* data, std::int64_t numel, DType dtype, double factor, bool across) {
  if (numel == 0) return;
  if (item_size(dtype) > 2) {
    scale_in_place(data, numel, dtype, factor);
    relay_->sum(data, numel, dtype, across);
    return;
  }
  std::vector<float> wide(static_cast<std::size_t>(numel));
  scaled_copy(data, dtype, numel, 1.0, wide.data(), DType::kFloat32);
  scale_in_place(wide.data(), numel, DType::kFloat32, factor);
  relay_->sum(wide.data(), numel, DType::kFloat32, across);
  scaled_copy(wide.data(), DType::kFloat32, numel, 1.0, data, dtype);
}

void RelayCommunicator::interrupt() {
  relay_->interrupt();
  SpreadCommunicator::interrupt();
}

void RelayCommunicator::abort(int exit_code) {
  relay_->break_up(exit_message(rank()).c_str());
  if (node().group) node().group->break_up(exit_message(rank()).c_str());
  std::_Exit(exit_code);
}

}  // namespace fastseq
