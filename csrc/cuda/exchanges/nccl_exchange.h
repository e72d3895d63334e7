// By NCCL: for ranks that each have a GPU of their own, on any number of machines.
#pragma once

#include <chrono>

#include "cuda/exchanges/nccl_communicator.h"
#include "cuda/exchanges/streamed_exchange.h"

namespace fastseq::cuda {

class NcclExchange final : public StreamedExchange {
 public:
  // Collective. Raises std::runtime_error, on all ranks, if NCCL cannot be used.
  NcclExchange(const std::shared_ptr<Communicator>& comm, int device, bool norm, std::chrono::duration<double> timeout)
      : StreamedExchange(comm, device, norm), nccl_(NcclCommunicator::of(comm, device, timeout)) {}
  ~NcclExchange() override {
    if (watched_ != nullptr) nccl_->forget(*watched_);
  }

  std::string_view name() const override { return "nccl"; }
  void raise_if_broken() override { nccl_->check(); }

 protected:
  void sum(std::size_t bucket) override;
  void collect() override;
  News* own_news() override { return news() + rank(); }
  void look_after(const Event& last) override {
    watched_ = &last;
    nccl_->watch(last);
  }

 private:
  std::shared_ptr<NcclCommunicator> nccl_;
  const Event* watched_ = nullptr;
};

}  // namespace fastseq::cuda
