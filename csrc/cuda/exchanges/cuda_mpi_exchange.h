// By MPI on memory of the device, for MPI libraries that take it. Their streams are not ours: the host waits before
// each call.
#pragma once

#include <memory>
#include <vector>

#include "cuda/exchanges/exchange.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

class CudaMpiExchange final : public Exchange {
 public:
  // Collective, as are all that make something: what a rank cannot do raises std::runtime_error on all.
  CudaMpiExchange(std::shared_ptr<Communicator> comm, int device);

  std::string_view name() const override { return "cuda-mpi"; }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void prepare(std::span<const DeviceBucket> buckets, const double* facts) override;
  void set_value(const double* value) override { value_ = value; }
  void gathered(std::size_t bucket, cudaStream_t packs) override;
  Reduced average(std::size_t bucket, const Reduction& reduction) override;
  void precede(cudaStream_t reader) override { own_->averaged.precede(reader); }
  const Outcome* outcome() const override { return nullptr; }
  bool settle() override {
    cudaStreamSynchronize(own_->averages);
    return true;
  }

 private:
  struct Own {
    Stream averages;
    Event averaged;
  };

  void sum(const DeviceBucket& bucket, double factor);
  double sum_of_squares(const DeviceBucket& bucket);

  std::shared_ptr<Communicator> comm_;
  int device_;
  std::vector<DeviceBucket> buckets_;
  std::vector<std::unique_ptr<Event>> packed_;
  const double* facts_ = nullptr;
  const double* value_ = nullptr;
  std::unique_ptr<DeviceMemory> wide_;  // of the largest bucket of 16 bits, which MPI cannot add
  std::unique_ptr<DeviceMemory> squares_;
  std::vector<double> told_;  // on the host: a bucket's facts and the value, or squares
  std::unique_ptr<Own> own_;
};

}  // namespace fastseq::cuda
