// core/ranks/bucketizer.h for gradients on a GPU.
//
// A bucket whose gradients are all there is packed into its place on the device by one kernel, which scales and looks
// at the values, on a stream of its own that waits for those that made the gradients. The thread that exchanges has it
// averaged, in one of several ways (exchanges/exchange.h), and the reader's stream waits for the means. The thread that
// runs backward waits for other ranks, in `finish`, but never for the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/ranks/bucketizer.h"
#include "cuda/exchanges/exchange_kernels.h"
#include "cuda/exchanges/make_exchange.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

class DeviceBucketizer final : public Bucketizer {
 public:
  // Where the means of a dtype's parameters end.
  struct Places {
    DType dtype;
    std::vector<std::int64_t> members;
    std::vector<std::int64_t> offsets;
    std::shared_ptr<std::byte> memory;
    std::size_t bytes;
  };

  // As Bucketizer, for parameters on `device`. With `half_wire`, for fp32 parameters only (std::invalid_argument),
  // gradients are exchanged as bf16. Collective.
  DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, int device,
                   const ExchangeOptions& options, bool half_wire = false);
  ~DeviceBucketizer() override;

  std::string_view exchange() const { return exchange_->name(); }
  const std::vector<Places>& places() const { return places_; }

  // As Bucketizer's. `value`, if not null, is on the device, is there when `reader` has come so far, and must stay
  // until `finish`. `reader` is also the stream that read the means of the update before, which are overwritten.
  void start(double weight, const double* value, bool attention, double scale, cudaStream_t reader);
  // The gradient, on the device, is there when `producer` has come so far. It must stay until its bucket has been
  // gathered, and from then on until `packs` has come so far.
  std::int64_t ready(std::int64_t index, const void* gradient, cudaStream_t producer);
  cudaStream_t packs() const { return packs_; }
  // What `reader` gets from now on finds the means in their places.
  Result finish(cudaStream_t reader);
  void abandon() override;
  // Where the update's value, norm and the rank with a gradient that is not finite are, on the device, when `reader`
  // has come so far. Null: they are in the Result; otherwise its own are not set.
  const Outcome* outcome() const { return exchange_->outcome(); }
  // Raises CommunicationError if what the device did was broken off, so that means and outcomes are none.
  void raise_if_broken() const { exchange_->raise_if_broken(); }

 protected:
  bool gather(std::size_t bucket) override;
  Reduced average(std::size_t bucket, const Reduction& reduction) override {
    return exchange_->average(bucket, reduction);
  }

 private:
  // The streams that made a bucket's gradients, and the last one of each.
  struct Producers {
    std::vector<std::pair<cudaStream_t, std::unique_ptr<Event>>> events;
    std::size_t count = 0;  // of this update
  };

  // While `on` lives, which is until all is made.
  DeviceBucketizer(const OnDevice& on, const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, int device,
                   const ExchangeOptions& options, bool half_wire);
  DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, int device,
                   const ExchangeOptions& options, bool half_wire, std::unique_ptr<Exchange> exchange);
  void allocate(std::span<const std::int64_t> numels, bool half_wire);
  void make_places(std::span<const std::int64_t> numels, bool half_wire);
  void widen(cudaStream_t reader);
  double* facts_of(std::size_t bucket) const { return reinterpret_cast<double*>(facts_->data()) + 2 * bucket; }
  // After it nobody reads gradients or writes means; false: see Exchange.
  bool settle();
  // Ends all; whether nothing goes on, so that memory may go.
  bool ended() noexcept;
  // Leaves what the device, or a forked child's parent, may still use.
  void leave();

  int device_;
  std::vector<Places> places_;
  bool widens_;                          // the means are of another dtype than what is exchanged
  std::unique_ptr<DeviceMemory> facts_;  // two numbers for each bucket, see FactsOut
  std::vector<std::unique_ptr<DeviceMemory>> scratch_;
  std::vector<Producers> producers_;
  LentStream packs_;
  Event read_;
  std::unique_ptr<Exchange> exchange_;
};

}  // namespace fastseq::cuda
