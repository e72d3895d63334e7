// Agreement before an exchange: every rank announces its call; together the ranks learn whether all calls are the same,
// whether one rank has failed, and the few numbers sent along.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/ranks/communicator.h"

namespace fastseq {

enum class Operation : std::int64_t { kAllreduce = 1, kBroadcast, kBarrier, kAllocate, kLeave, kFail };

inline constexpr std::int64_t kPrivate = -1;

// Plain data, placed in shared memory and sent as bytes.
struct Call {
  Operation operation = Operation::kBarrier;
  std::int64_t bytes = 0;
  std::int64_t detail = 0;        // anything else that must be equal on all ranks: a dtype, a root, an update, a bucket
  double weight = 0;              // weight of this rank's data in a mean
  double value = 0;               // a number to average too, by the same weights
  std::uint64_t flags = 0;        // or'ed together
  std::int64_t place = kPrivate;  // place of this rank's data in memory that the others see; kPrivate if none
  std::int64_t handle = -1;       // handle by which the others can open this rank's memory
};

// The combined calls of all ranks.
struct Outcome {
  bool same = true;      // operation, bytes and detail are equal on all ranks
  int failed_rank = -1;  // the lowest rank with kFail
  int left_rank = -1;    // the lowest rank with kLeave
  double weight = 0;     // sum of weights
  double value = 0;      // sum of weight * value, over ranks with a weight
  std::uint64_t flags = 0;
  int alarmed_rank = -1;          // the lowest rank with kAlarm among its flags
  std::int64_t place = kPrivate;  // of all ranks' data, if it is the same
};

Outcome outcome_of(std::span<const Call> calls);

Call allreduce_call(std::int64_t numel, DType dtype, const Reduction& reduction);
Reduced reduced_of(const Outcome& outcome);
// The factor of each rank's data in the sum: 1, or its share of all weights (0 for all if there is none).
std::vector<double> factors_of(std::span<const Call> calls, bool mean);

// Raises CommunicationError unless `root` is one of `size` ranks.
void check_root(int root, int size);

// The user's call that a rank is in, such as "fit". Sent only if the ranks disagree.
using Purpose = std::array<char, 64>;
Purpose purpose_of(std::string_view text);

// One sentence on which rank makes which call, and in which of the user's calls.
std::string describe_disagreement(std::span<const Call> calls, std::span<const Purpose> purposes);

// "rank 0 waited 600 s for rank 2: …"
std::string timeout_message(int rank, double seconds, const std::string& missing);
// A timeout in the clock's units, with infinite ones limited.
std::chrono::steady_clock::duration clock_time(std::chrono::duration<double> timeout);
// "rank 0 has exited"
std::string exit_message(int rank);
// The error of a rank that learns of a cause: "rank 1 cannot continue: rank 0 waited …".
LostRanks lost_ranks(int rank, const std::string& cause);

// The cause in the exception being handled: "rank 1 failed in the middle of allreduce: …", or a LostRanks' cause.
// Allocates no memory, of which there may be none.
using Cause = std::array<char, 512>;
Cause current_cause(int rank, Operation operation) noexcept;

const char* operation_name(Operation operation);

// Whether a communicator still accepts calls, and if not, why.
class Standing {
 public:
  // Raises CommunicationError if an earlier call was the last one.
  void check(int rank, Operation operation) const;
  bool ended() const { return ended_; }
  // Refuses calls from now on. The first reason counts.
  void end(std::string_view reason);
  // Ends if the outcome rules out further common calls: a rank leaves, or the ranks disagree.
  void note(const Outcome& outcome);

 private:
  bool ended_ = false;
  std::string reason_;
};

}  // namespace fastseq
