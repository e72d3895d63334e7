// core/ranks/bucketizer.h for gradients on a GPU.
//
// Each buffer has a twin on the device, where the means end. A bucket whose gradients are all there is packed into its
// place there by one kernel, which scales and looks at the values, and copied to the host's buffer, which CUDA knows:
// on streams of this object's own, which wait for the streams that made the gradients. The thread that exchanges waits
// for the bucket, averages it as those of the host are, whatever joins the ranks, and begins the copy back. The thread
// that runs backward waits for nothing until `finish`, and the device as a whole is never waited for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/ranks/bucketizer.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

class DeviceBucketizer final : public Bucketizer {
 public:
  // As Bucketizer, for parameters on `device`. Collective.
  DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, bool norm, int device);
  ~DeviceBucketizer() override;

  // Where the mean of a parameter's gradient is, on the device.
  void* device_place(std::int64_t index) const;

  // As Bucketizer's. `reader`: the stream that read the means of the update before, which are overwritten.
  void start(double weight, double value, bool attention, double scale, cudaStream_t reader);
  // The gradient, on the device, is there when `producer` has come so far, and must stay until `finish`.
  std::int64_t ready(std::int64_t index, const void* gradient, cudaStream_t producer);
  // What `reader` gets from now on finds the means in their places.
  Result finish(cudaStream_t reader);
  void abandon() override;

 protected:
  bool gather(std::size_t bucket) override;
  bool arrive(std::size_t bucket) override;
  void deliver(std::size_t bucket) override;

 private:
  struct Way {                                                              // of a bucket
    std::vector<std::pair<cudaStream_t, std::unique_ptr<Event>>> produced;  // the last gradient of each stream
    std::size_t streams = 0;                                                // of this update
    Event packed;
    Event fetched;  // it is on the host
    Event delivered;
    std::unique_ptr<DeviceMemory> scratch;
  };

  std::byte* device_data(std::size_t bucket) const;
  double* facts_of(std::size_t bucket) const;
  void wait() const;

  int device_;
  std::vector<std::unique_ptr<DeviceMemory>> twins_;  // of the buffers
  std::vector<std::unique_ptr<Registered>> registered_;
  std::unique_ptr<DeviceMemory> facts_;  // two numbers for each bucket, see FactsOut
  std::vector<double> host_facts_;
  std::unique_ptr<Registered> registered_facts_;
  std::vector<std::unique_ptr<Way>> ways_;
  Stream packs_;
  Stream copies_;
  Event read_;
};

}  // namespace fastseq::cuda
