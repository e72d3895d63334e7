// Averages gradients over ranks while the backward pass is still running.
//
// Gradients have places in one flat buffer per dtype, in memory that the other ranks see, in the order in which the
// parameters were registered. Buckets are cut from the end of the buffers, because backward reaches the last parameters
// first. A bucket with all its gradients is gathered into its place and exchanged, strictly in the order of the buckets
// on every rank, by this object's own thread (or, if only one thread may communicate, in finish).
//
// An update is: start; ready for each parameter that has a gradient; finish. Between start and finish only this object
// may use the communicator. All methods are called by one thread at a time. A forked child can only destroy its copy.
//
// Gradients in other memory than the host's: a derived class says where their places are, and how buckets get there and
// become means.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "core/base/flat_layout.h"
#include "core/ranks/communicator.h"

namespace fastseq {

class Bucketizer {
 public:
  // The buffer of a dtype, and the layout of its parameters' gradients.
  struct Buffer {
    DType dtype;
    std::vector<std::int64_t> members;  // indices of parameters
    FlatLayout layout;
    std::shared_ptr<std::byte> memory;
  };

  // The result of an update, the same on all ranks.
  struct Result {
    double weight = 0;        // the sum of the ranks' weights
    double value = 0;         // the weighted mean of their values
    int nonfinite_rank = -1;  // the lowest rank with an infinite or NaN gradient
    bool attention = false;   // whether a rank asked for it
    double norm = 0;          // of all means together, the root of the sum of their squares; if it is wanted
    // The parameters that got no gradient on any rank; their places hold zeros.
    std::vector<std::int64_t> unused = {};
  };

  // Parameters with `numels` elements of `dtypes`; buckets hold at least `bucket_bytes`, or the rest. Collective.
  // `norm`, equal on all ranks: whether the norm of the means is wanted.
  Bucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
             std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, bool norm = false)
      : Bucketizer(comm, numels, dtypes, bucket_bytes, threaded, norm,
                   [&comm](std::size_t bytes) { return comm->allocate(bytes); }) {}
  virtual ~Bucketizer();
  Bucketizer(const Bucketizer&) = delete;
  Bucketizer& operator=(const Bucketizer&) = delete;

  const std::vector<Buffer>& buffers() const { return buffers_; }
  bool finds_norm() const { return norm_; }
  std::int64_t bucket_count() const { return static_cast<std::int64_t>(buckets_.size()); }
  const std::vector<std::int64_t>& members(std::int64_t bucket) const {
    return buckets_.at(static_cast<std::size_t>(bucket)).members;
  }

  // `weight` of this rank's gradients in the mean: finite and not negative (std::invalid_argument). `value` is averaged
  // too; all ranks learn whether one asks for attention. This rank's gradients are multiplied by `scale`.
  void start(double weight, double value, bool attention = false, double scale = 1);
  bool started() const { return started_; }
  // Parameter `index` has its contiguous gradient at `gradient`, where it must stay until its bucket has been gathered:
  // in its own memory, or in its place already.
  // Returns how many buckets, from the first, have been gathered: their gradients may be freed. Raises std::logic_error
  // if called twice for a parameter in an update.
  std::int64_t ready(std::int64_t index, const void* gradient);
  // Exchanges the remaining buckets and waits for all. Raises what an exchange raised.
  Result finish();
  // Ends an update that failed on this rank: waits for the exchanges under way, and raises what they raised.
  virtual void abandon();
  // Ends the thread and its exchanges under way, because this process ends. Raises nothing.
  void stop();

 protected:
  // Memory for a buffer.
  using Allocate = std::function<std::shared_ptr<std::byte>(std::size_t bytes)>;
  Bucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
             std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, bool norm,
             const Allocate& allocate);

  struct Bucket {
    std::size_t buffer;
    std::int64_t begin;  // elements of the buffer
    std::int64_t numel;
    std::vector<std::int64_t> members;
    std::size_t missing;  // members without a gradient in this update
  };

  // Brings a bucket's gradients, scaled, to their places, or begins to; zeros where there is none. Returns whether some
  // are known not to be finite. Called by the caller's thread, in the order of the buckets.
  virtual bool gather(std::size_t bucket);
  // Makes a bucket's gradients their means over the ranks. Called by the thread that exchanges, in the same order.
  virtual Reduced average(std::size_t bucket, const Reduction& reduction);
  // Ends the thread. For destructors of derived classes, whose methods it calls.
  void end_thread();
  // Whether this is a copy in a forked child, which must be left as it is.
  bool forked() const;

  const std::vector<Bucket>& buckets() const { return buckets_; }
  std::int64_t numel(std::int64_t index) const { return numels_[static_cast<std::size_t>(index)]; }
  std::byte* place(std::int64_t index) const { return places_[static_cast<std::size_t>(index)]; }
  std::byte* data_of(const Bucket& bucket) const;
  std::size_t bucket_of(std::int64_t index) const { return bucket_of_.at(static_cast<std::size_t>(index)); }
  // Null: it has none in this update.
  const void* gradient(std::int64_t index) const;
  double scale() const { return scale_; }

 private:
  void plan(std::int64_t bucket_bytes);
  void settle(std::size_t index, const void* gradient, bool used);
  void launch_full_buckets();
  void submit(std::size_t bucket, std::uint64_t flags);
  void exchange(std::size_t bucket, std::uint64_t flags);
  void work();
  void drain();
  void reset();
  std::vector<std::int64_t> find_unused();

  std::shared_ptr<Communicator> comm_;
  std::vector<std::int64_t> numels_;
  std::vector<Buffer> buffers_;
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> bucket_of_;
  std::vector<std::byte*> places_;
  bool norm_;

  bool started_ = false;
  double weight_ = 1;
  double value_ = 0;
  double scale_ = 1;
  std::uint64_t attention_ = 0;  // this rank's flags, sent with each bucket
  std::int64_t step_ = 0;
  std::vector<const void*> gradients_;
  std::vector<bool> seen_;  // ready, or known to have no gradient
  std::vector<bool> used_;  // ready
  std::size_t next_ = 0;    // the next bucket to exchange

  std::uint64_t flags_ = 0;
  double sum_of_squares_ = 0;
  Result result_;

  // Shared by the communicating thread and the caller. In one object, because a forked child must not touch it: the
  // child has no such thread, the mutex may be locked forever, and the thread's number may be another thread's.
  struct Job {
    std::size_t bucket;
    std::uint64_t flags;
  };
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Job> queue;
    bool busy = false;
    bool stopping = false;
    std::exception_ptr error;
    std::thread thread;
    int process = 0;  // the process of the thread
  };

  std::unique_ptr<Shared> shared_ = std::make_unique<Shared>();
};

}  // namespace fastseq
