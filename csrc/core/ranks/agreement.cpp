#include "core/ranks/agreement.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <exception>

namespace fastseq {

const char* operation_name(Operation operation) {
  static constexpr std::array kNames = {"?", "allreduce", "broadcast", "barrier", "allocate", "exit", "fail"};
  return kNames.at(static_cast<std::size_t>(operation));
}

Outcome outcome_of(std::span<const Call> calls) {
  Outcome outcome;
  const Call& first = calls.front();
  outcome.place = first.place;
  int rank = 0;
  for (const Call& call : calls) {
    if (call.place != first.place) outcome.place = kPrivate;
    outcome.same &= call.operation == first.operation && call.bytes == first.bytes && call.detail == first.detail;
    if (call.operation == Operation::kFail && outcome.failed_rank < 0) outcome.failed_rank = rank;
    if (call.operation == Operation::kLeave && outcome.left_rank < 0) outcome.left_rank = rank;
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

Purpose purpose_of(std::string_view text) {
  Purpose purpose{};
  text.copy(purpose.data(), purpose.size() - 1);
  return purpose;
}

namespace {

std::string describe_call(const Call& call) {
  if (call.operation == Operation::kLeave) return " has exited";
  std::string text = std::string(" calls ") + operation_name(call.operation);
  if (call.operation != Operation::kBarrier) text += " of " + std::to_string(call.bytes) + " bytes";
  if (call.operation == Operation::kBroadcast) text += " from rank " + std::to_string(call.detail);
  if (call.operation == Operation::kAllreduce) {
    static constexpr std::array kDTypes = {"float16", "bfloat16", "float32", "float64"};
    text += std::string(" (") + (call.detail % 2 != 0 ? "mean" : "sum") + " of " +
            kDTypes.at(static_cast<std::size_t>(call.detail / 2 % 4));
    if (const std::int64_t sequence = call.detail / 8; sequence != 0) {
      text += ", update " + std::to_string(sequence >> kBucketBits) + ", bucket " +
              std::to_string(sequence & ((std::int64_t{1} << kBucketBits) - 1));
    }
    text += ')';
  }
  return text;
}

}  // namespace

std::string describe_disagreement(std::span<const Call> calls, std::span<const Purpose> purposes) {
  std::string message = "the ranks are out of step:";
  for (std::size_t rank = 0; rank < calls.size(); ++rank) {
    message += (rank == 0 ? " rank " : ", rank ") + std::to_string(rank) + describe_call(calls[rank]);
    const std::string purpose = purposes[rank].data();
    if (!purpose.empty() && calls[rank].operation != Operation::kLeave) message += " in " + purpose;
  }
  return message + "; every rank must make the same calls";
}

std::string timeout_message(int rank, double seconds, const std::string& missing) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", seconds);
  return "rank " + std::to_string(rank) + " waited " + text.data() + " s for " + missing +
         ": still at work, stuck or dead? (timeout=... waits longer)";
}

std::chrono::steady_clock::duration clock_time(std::chrono::duration<double> timeout) {
  constexpr std::chrono::duration<double> kLongest = std::chrono::hours(24 * 365);
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::min(timeout, kLongest));
}

std::string exit_message(int rank) { return "rank " + std::to_string(rank) + " has exited"; }

LostRanks lost_ranks(int rank, const std::string& cause) {
  return {cause, "rank " + std::to_string(rank) + " cannot continue: " + cause};
}

Cause current_cause(int rank, Operation operation) noexcept {
  Cause cause{};
  const auto write = [&](const char* what) {
    std::snprintf(cause.data(), cause.size(), "rank %d failed in the middle of %s: %s", rank, operation_name(operation),
                  what);
  };
  try {
    throw;
  } catch (const LostRanks& lost) {
    std::snprintf(cause.data(), cause.size(), "%s", lost.cause.c_str());
  } catch (const std::exception& error) {
    write(error.what());
  } catch (...) {
    write("an error of unknown kind");
  }
  return cause;
}

void Standing::check(int rank, Operation operation) const {
  if (!ended_) return;
  throw CommunicationError("rank " + std::to_string(rank) + ": cannot " + operation_name(operation) + ": " + reason_ +
                           "; restart the job");
}

void Standing::end(std::string_view reason) {
  if (ended_) return;
  ended_ = true;
  reason_ = reason;
}

void Standing::note(const Outcome& outcome) {
  if (outcome.left_rank >= 0) {
    end(exit_message(outcome.left_rank));
  } else if (!outcome.same && outcome.failed_rank < 0) {
    end("an earlier call found the ranks out of step");
  }
}

}  // namespace fastseq
