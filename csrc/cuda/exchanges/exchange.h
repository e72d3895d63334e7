// How buckets of gradients on a GPU become their means over the ranks.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "core/base/dtype.h"
#include "core/ranks/communicator.h"

namespace fastseq::cuda {

// A bucket on the device: this rank's gradients, then the means.
struct DeviceBucket {
  std::byte* data;
  std::int64_t numel;
  DType dtype;
};

class Exchange {
 public:
  Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  virtual ~Exchange() = default;

  virtual std::string_view name() const = 0;

  // Memory for buckets, on the device. Collective.
  virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
  // All buckets, in the order in which they are averaged, in memory from `allocate`, and their facts, two for each (see
  // FactsOut). Collective.
  virtual void prepare(std::span<const DeviceBucket> buckets, const double* facts) = 0;

  // A rank's value of an update, on the device, is averaged with its last bucket; null: it is the host's, and comes
  // with the reduction. It must stay until the update has ended.
  virtual void set_value(const double* value) = 0;
  // Called by the thread of backward: `packs` has been told to write the bucket and its facts.
  virtual void gathered(std::size_t bucket, cudaStream_t packs) = 0;
  // Called by the thread that exchanges. The means are there when `precede` says so.
  virtual Reduced average(std::size_t bucket, const Reduction& reduction) = 0;
  // Tells the reader to wait for all means, and for the outcome.
  virtual void precede(cudaStream_t reader) = 0;
  // What all ranks know of an update besides its weight, flags and means, on the device, when `precede` says so: the
  // host does not know it. Null: it is in what `average` returns.
  virtual const struct Outcome* outcome() const = 0;
  // Raises CommunicationError if what was begun has been broken off, or does not end within the timeout. To be called
  // before the outcome is read, where the device may wait for ever, and after that.
  virtual void raise_if_broken() {}
  // Waits on the host until nothing that was begun goes on, on this rank or, with this rank's memory, on others. False:
  // the device waits for a rank that seems to have died; then this object must not be destroyed.
  virtual bool settle() = 0;
};

}  // namespace fastseq::cuda
