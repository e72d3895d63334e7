// The interface of collective communication, implemented by every transport.
//
// Every call is collective: all ranks make the same calls in the same order. The ranks first agree on the call (which
// operation, how many bytes, whether one of them has failed), and only then move data. A rank that fails says so in
// place of its next call, and all the others get its message as a RemoteFailure instead of waiting forever. A rank
// that fails while data move cannot do that: it breaks up the group, and all others get a CommunicationError with the
// cause, as they do if a rank does not arrive in time; then no more calls can be made. Calls block, and are made by one
// thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/dtype.h"

namespace fastseq {

// The exchange itself failed: the message names rank, operation and cause.
class CommunicationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A rank cannot continue, so none can. `cause` says which rank and why; the message also names the rank that raises it.
class LostRanks : public CommunicationError {
 public:
  LostRanks(std::string why, const std::string& message) : CommunicationError(message), cause(std::move(why)) {}
  std::string cause;
};

// Another rank has failed; `rank` is the lowest that did, what() is its message.
class RemoteFailure : public std::runtime_error {
 public:
  RemoteFailure(int failed_rank, const std::string& message) : std::runtime_error(message), rank(failed_rank) {}
  int rank;
};

// The flag for which the lowest rank that raised it is reported.
inline constexpr std::uint64_t kAlarm = 1;

// How an allreduce combines the ranks' data, and what is sent along.
struct Reduction {
  bool mean = true;           // the weighted mean over the ranks, else the plain sum
  double weight = 1.0;        // weight of this rank's data in the mean; data with weight 0 are not read
  double value = 0.0;         // a number to average by the same weights
  std::uint64_t flags = 0;    // or'ed together
  std::int64_t sequence = 0;  // update and bucket; must be equal on all ranks
  bool squares = false;       // whether Reduced::sum_of_squares is wanted; must be equal on all ranks
};
inline constexpr int kBucketBits = 20;  // bits of a sequence for the bucket

// What all ranks learn besides the data.
struct Reduced {
  double weight = 0.0;  // the sum of the weights; if it is 0, the mean is 0
  double value = 0.0;   // the weighted mean of the values
  std::uint64_t flags = 0;
  int alarmed_rank = -1;        // the lowest rank that raised kAlarm
  double sum_of_squares = 0.0;  // of the mean or sum
};

class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;  // rank within this node
  virtual int local_size() const = 0;
  virtual std::string_view transport() const = 0;
  // Whether a thread other than the one that started MPI may make the calls.
  virtual bool any_thread() const = 0;

  // data[i] becomes its mean or sum over all ranks, the same bits on every rank.
  virtual Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) = 0;
  // Replaces data by root's.
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  virtual void barrier() = 0;

  // Memory for buffers that are exchanged often: aligned to a cache line, zeroed, freed with the last reference. Shared
  // with the other ranks of this node if possible. Collective.
  virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
  // Whether these data are in memory that other ranks see.
  virtual bool is_shared(const void* data, std::size_t bytes) const = 0;

  // The ranks of this node that share memory with this one, in their order.
  virtual std::vector<int> node_ranks() const { return {rank()}; }
  // How many ranks of each node exchange with those of the others, a part of the data each; 0: there is one node.
  virtual int slices() const { return 0; }
  // data[i] becomes its sum over the nodes, on the ranks that have this one's number in theirs: the first `slices`.
  virtual void sum_over_nodes(void* /*data*/, std::int64_t /*numel*/, DType /*dtype*/) {
    throw std::logic_error("there is one node");
  }

  // Whether the ranks can sum memory of GPUs as it is: empty, or why not.
  virtual std::string device_problem() const {
    return "the transport \"" + std::string(transport()) + "\" does not take memory of GPUs";
  }
  // data[i] becomes its sum over all ranks, in memory of a GPU, in fp32 or fp64. Nothing may be under way there.
  virtual void sum_on_device(void* /*data*/, std::int64_t /*numel*/, DType /*dtype*/) {
    throw std::logic_error(device_problem());
  }

  // Reports to the others, in place of this rank's next call, that it has failed and why. Returns when they know.
  virtual void fail(std::string_view message) = 0;
  // Announces that this rank makes no more calls; ranks that still call get a CommunicationError that names it. Does
  // not raise, regardless of the others.
  virtual void leave() = 0;
  // Makes a call of another thread, under way or later, raise CommunicationError, because this process ends.
  virtual void interrupt() = 0;
  // Ends the processes of all ranks.
  [[noreturn]] virtual void abort(int exit_code) = 0;

  // The user's call behind the calls made here: reported if the ranks are out of step.
  void set_purpose(std::string purpose) {
    const std::scoped_lock lock(purpose_mutex_);
    purpose_ = std::move(purpose);
  }
  std::string purpose() const {
    const std::scoped_lock lock(purpose_mutex_);
    return purpose_;
  }

 private:
  mutable std::mutex purpose_mutex_;
  std::string purpose_;
};

}  // namespace fastseq
