// What every rank says before an exchange, and what the ranks make of it together: whether they all mean the same call,
// whether one of them has failed, and the few numbers that travel along.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/communicator.h"
#include "core/dtype.h"

namespace fastseq {

enum class Operation : std::int64_t { kAllreduce = 1, kBroadcast, kBarrier, kAllocate, kLeave, kFail };

inline constexpr std::int64_t kPrivate = -1;

// Plain data: it lies in shared memory and is sent as bytes.
struct Call {
  Operation operation = Operation::kBarrier;
  std::int64_t bytes = 0;
  std::int64_t detail = 0;        // whatever else must be the same on all ranks: a dtype, a root, a step and a bucket
  double weight = 0;              // of this rank's data in a mean
  double value = 0;               // a number to average along, by the same weights
  std::uint64_t flags = 0;        // or'ed together
  std::int64_t place = kPrivate;  // where this rank's data lies in memory that the others see; kPrivate if nowhere
  std::int64_t handle = -1;       // by which the others can open this rank's memory
};

// All ranks' calls taken together.
struct Outcome {
  bool same = true;      // operation, bytes and detail are equal on all ranks
  int failed_rank = -1;  // the lowest rank that says kFail
  double weight = 0;     // sum of weights
  double value = 0;      // sum of weight * value, over ranks with a weight
  std::uint64_t flags = 0;
  int alarmed_rank = -1;  // the lowest rank with kAlarm among its flags
};

Outcome outcome_of(std::span<const Call> calls);

Call allreduce_call(std::int64_t numel, DType dtype, const Reduction& reduction);
Reduced reduced_of(const Outcome& outcome);
// By what each rank's data enter the sum: 1, or its share of all weights (0 for all if there is none).
std::vector<double> factors_of(std::span<const Call> calls, bool mean);

// Raises CommunicationError unless `root` is one of `size` ranks.
void check_root(int root, int size);

// One sentence that says which rank calls what.
std::string describe_disagreement(std::span<const Call> calls);

// "rank 1: cannot allreduce: …"
std::string out_of_step_message(int rank, Operation operation);

// "rank 0 waited 600 s for rank 2: …"
std::string timeout_message(int rank, double seconds, const std::string& missing);

const char* operation_name(Operation operation);

}  // namespace fastseq
