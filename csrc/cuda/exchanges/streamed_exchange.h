// Exchanges in the order of a stream: the host never waits for the device, and what it does not know, such as the
// norm, ends on the device. By itself, for a single rank.
#pragma once

#include <memory>
#include <vector>

#include "core/ranks/weighted_sum.h"
#include "cuda/exchanges/exchange.h"
#include "cuda/exchanges/exchange_kernels.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

class StreamedExchange : public Exchange {
 public:
  // `norm`: whether the norm of the means is wanted. Collective, as are those of derived classes: what a rank cannot do
  // raises std::runtime_error on all.
  StreamedExchange(std::shared_ptr<Communicator> comm, int device, bool norm);

  std::string_view name() const override { return "single"; }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override { return device_memory(bytes); }
  void prepare(std::span<const DeviceBucket> buckets, const double* facts) override;
  void set_value(const double* value) final { value_ = value; }
  void gathered(std::size_t bucket, cudaStream_t packs) override;
  Reduced average(std::size_t bucket, const Reduction& reduction) final;
  void precede(cudaStream_t reader) final { own_->last.precede(reader); }
  const Outcome* outcome() const final { return reinterpret_cast<const Outcome*>(own_->outcome.data()); }
  bool settle() override;

 protected:
  // The part of a bucket whose squares this rank adds up.
  virtual Slice part_of(const DeviceBucket& bucket) const {
    return slice_of(bucket.numel, bucket.dtype, rank(), size());
  }
  // Tells `stream` to make a bucket's gradients means, once they are packed, and to write the squares of this rank's
  // part. All ranks have said that they do so.
  virtual void sum(std::size_t bucket);
  // Tells it to bring the news of all ranks to `news`. A rank writes its own to `own_news` before.
  virtual void collect() {}
  virtual News* own_news() { return news(); }
  // `last` has just been recorded: it comes when all that was begun has ended on the device.
  virtual void look_after(const Event& /*last*/) {}

  const std::shared_ptr<Communicator>& comm() const { return comm_; }
  int rank() const { return comm_->rank(); }
  int size() const { return comm_->size(); }
  const DeviceBucket& bucket(std::size_t index) const { return buckets_[index]; }
  cudaStream_t stream() const { return own_->averages; }
  const Event& last() const { return own_->last; }
  News* news() const { return reinterpret_cast<News*>(own_->news.data()); }
  // The ranks' factors in the mean of this update.
  const std::vector<double>& factors() const { return factors_; }
  // Where the squares of this rank's part of a bucket go; null: they are not wanted, or another's.
  double* squares(std::size_t bucket) const;

 private:
  struct Own {
    explicit Own(int ranks) : news(static_cast<std::size_t>(ranks) * sizeof(News)), outcome(sizeof(Outcome)) {}

    DeviceMemory news;  // of all ranks
    DeviceMemory outcome;
    Stream averages;
    Event last;
  };

  Reduced agree(const Reduction& reduction);

  std::shared_ptr<Communicator> comm_;
  int device_;
  bool norm_;
  std::vector<DeviceBucket> buckets_;
  std::vector<std::unique_ptr<Event>> packed_;
  const double* facts_ = nullptr;
  const double* value_ = nullptr;
  std::vector<double> factors_;
  std::vector<std::int64_t> first_square_;  // of each bucket, and the end
  std::unique_ptr<DeviceMemory> squares_;
  std::unique_ptr<Own> own_;
};

}  // namespace fastseq::cuda
