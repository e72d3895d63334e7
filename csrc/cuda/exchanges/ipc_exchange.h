// For ranks of one machine: each maps the others' buckets, and sums its part of them all with a kernel, in the order of
// the ranks, as ranks do on the host with memory that they share. They may share a GPU, too. With several machines, the
// sums of each go on to the others through the host.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/exchanges/streamed_exchange.h"

namespace fastseq::cuda {

class IpcExchange final : public StreamedExchange {
 public:
  // Collective. Raises std::runtime_error, on all ranks, if they cannot map each other's memory.
  // `timeout`: for ranks that may have died.
  IpcExchange(std::shared_ptr<Communicator> comm, int device, bool norm, std::chrono::duration<double> timeout);
  ~IpcExchange() override;

  std::string_view name() const override { return "cuda-ipc"; }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void prepare(std::span<const DeviceBucket> buckets, const double* facts) override;
  void gathered(std::size_t bucket, cudaStream_t packs) override;
  void raise_if_broken() override;
  bool settle() override;

 protected:
  Slice part_of(const DeviceBucket& bucket) const override;
  void sum(std::size_t bucket) override;
  void collect() override;
  News* own_news() override;

 private:
  // Memory of this rank, and as that of the node's ranks is seen here, in their order.
  struct Buffer {
    std::shared_ptr<std::byte> own;
    std::size_t bytes;
    std::vector<std::byte*> of;
  };
  // An event that the others know, and theirs.
  struct Events {
    std::unique_ptr<Event> own;
    std::vector<std::unique_ptr<Event>> of;  // null: this rank's own
  };

  // What a rank shows the others on the host, in memory that all see.
  struct alignas(64) Progress {
    std::atomic<std::int64_t> sums;  // begun so far
    std::atomic<bool> closed;        // it no longer has the others' memory
  };

  Events share_event();
  void share_progress();
  void wait_for(const Events& events);
  // A rank's part of the sums of its node.
  Slice own_part(const DeviceBucket& bucket) const;
  std::vector<void*> peers_of(const DeviceBucket& bucket, std::int64_t first) const;
  void sum_over_nodes(void* data, std::int64_t numel, DType dtype);
  void collect_over_nodes();
  // Wait on the host until all in `stream`, or an event, has come; raise CommunicationError after the timeout.
  void wait();
  void wait(const Event& event) const;

  std::chrono::duration<double> timeout_;
  std::vector<int> node_;  // its ranks' numbers among all
  std::size_t here_;       // this rank's number in it
  int parts_;              // so many of them sum
  bool several_nodes_;
  std::shared_ptr<std::byte> staging_;  // for sums on their way to other nodes
  std::unique_ptr<Registered> registered_;
  std::size_t news_at_ = 0;
  std::vector<Buffer> buffers_;  // the first one has the news
  std::vector<Events> packed_;   // of buckets
  Events summed_;
  Events told_;
  std::shared_ptr<std::byte> shared_;
  std::span<Progress> progress_;  // of the ranks
  std::int64_t finished_ = 0;     // sums of updates that have ended on all ranks
};

}  // namespace fastseq::cuda
