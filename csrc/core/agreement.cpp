#include "core/agreement.h"

#include <array>
#include <cstddef>
#include <cstdio>

namespace fastseq {

const char* operation_name(Operation operation) {
  static constexpr std::array kNames = {"?", "allreduce", "broadcast", "barrier", "allocate", "exit", "fail"};
  return kNames.at(static_cast<std::size_t>(operation));
}

Outcome outcome_of(std::span<const Call> calls) {
  Outcome outcome;
  const Call& first = calls.front();
  int rank = 0;
  for (const Call& call : calls) {
    outcome.same &= call.operation == first.operation && call.bytes == first.bytes && call.detail == first.detail;
    if (call.operation == Operation::kFail && outcome.failed_rank < 0) outcome.failed_rank = rank;
    if (call.weight != 0.0) {
      outcome.weight += call.weight;
      outcome.value += call.weight * call.value;
    }
    if ((call.flags & kAlarm) != 0 && outcome.alarmed_rank < 0) outcome.alarmed_rank = rank;
    outcome.flags |= call.flags;
    ++rank;
  }
  return outcome;
}

Call allreduce_call(std::int64_t numel, DType dtype, const Reduction& reduction) {
  return {.operation = Operation::kAllreduce,
          .bytes = numel * static_cast<std::int64_t>(item_size(dtype)),
          .detail = reduction.sequence * 8 + static_cast<std::int64_t>(dtype) * 2 + (reduction.mean ? 1 : 0),
          .weight = reduction.weight,
          .value = reduction.value,
          .flags = reduction.flags};
}

Reduced reduced_of(const Outcome& outcome) {
  return {.weight = outcome.weight,
          .value = outcome.weight == 0.0 ? 0.0 : outcome.value / outcome.weight,
          .flags = outcome.flags,
          .alarmed_rank = outcome.alarmed_rank};
}

std::vector<double> factors_of(std::span<const Call> calls, bool mean) {
  std::vector<double> factors;
  factors.reserve(calls.size());
  const double weight = outcome_of(calls).weight;
  for (const Call& call : calls) {
    const bool counts = mean && call.weight != 0.0;
    factors.push_back(counts ? call.weight / weight : (mean ? 0.0 : 1.0));
  }
  return factors;
}

void check_root(int root, int size) {
  if (root >= 0 && root < size) return;
  throw CommunicationError("broadcast: root must be one of the " + std::to_string(size) + " ranks, got " +
                           std::to_string(root));
}

std::string describe_disagreement(std::span<const Call> calls) {
  std::string message = "the ranks are out of step:";
  int rank = 0;
  for (const Call& call : calls) {
    message += (rank == 0 ? " rank " : ", rank ") + std::to_string(rank);
    if (call.operation == Operation::kLeave) {
      message += " has exited";
    } else {
      message += std::string(" calls ") + operation_name(call.operation) + " of " + std::to_string(call.bytes) +
                 " bytes (" + std::to_string(call.detail) + ")";
    }
    ++rank;
  }
  return message + "; every rank must make the same calls";
}

std::string timeout_message(int rank, double seconds, const std::string& missing) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", seconds);
  return "rank " + std::to_string(rank) + " waited " + text.data() + " s for " + missing +
         ": still at work, stuck or dead? (timeout=... waits longer)";
}

std::string out_of_step_message(int rank, Operation operation) {
  return "rank " + std::to_string(rank) + ": cannot " + operation_name(operation) +
         ": an earlier call found the ranks out of step; restart the job";
}

}  // namespace fastseq
