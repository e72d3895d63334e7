// Through memory of the host that the ranks share, whatever joins them there.
//
// Buckets are copied to the host in pieces, averaged there by the communicator, and copied back: while one piece is
// averaged, the next one and the one before it are under way.
#pragma once

#include <memory>
#include <vector>

#include "cuda/exchanges/exchange.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

class StagedExchange final : public Exchange {
 public:
  // Collective, as are all that make something: what a rank cannot do raises std::runtime_error on all.
  StagedExchange(std::shared_ptr<Communicator> comm, int device);

  std::string_view name() const override { return "staged"; }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void prepare(std::span<const DeviceBucket> buckets, const double* facts) override;
  void set_value(const double* value) override { value_ = value; }
  void gathered(std::size_t bucket, cudaStream_t packs) override;
  Reduced average(std::size_t bucket, const Reduction& reduction) override;
  void precede(cudaStream_t reader) override;
  const Outcome* outcome() const override { return nullptr; }
  bool settle() override;

 private:
  struct Buffer {
    std::byte* device;
    std::size_t bytes;
    std::shared_ptr<std::byte> host;
    std::unique_ptr<Registered> registered;
  };
  struct Piece {
    std::byte* device;
    std::byte* host;
    std::int64_t numel;
    std::unique_ptr<Event> fetched;
  };
  struct Way {  // of a bucket
    DType dtype;
    std::vector<Piece> pieces;
    Event packed;
  };

  struct Lanes {
    Stream fetches;
    Stream deliveries;
    Event delivered;
  };

  void plan(std::span<const DeviceBucket> buckets);

  std::shared_ptr<Communicator> comm_;
  int device_;
  std::vector<Buffer> buffers_;
  std::vector<std::unique_ptr<Way>> ways_;
  const double* facts_ = nullptr;
  const double* value_ = nullptr;
  std::vector<double> told_;  // on the host: the buckets' facts, and the value
  std::unique_ptr<Registered> registered_told_;
  std::unique_ptr<Lanes> lanes_;
};

}  // namespace fastseq::cuda
