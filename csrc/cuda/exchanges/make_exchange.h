// Which exchange ranks use: chosen once, the same on all.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cuda/exchanges/exchange.h"

namespace fastseq::cuda {

struct ExchangeOptions {
  // "auto", or "nccl", "cuda-ipc", "cuda-mpi", "staged".
  std::string exchange = "auto";
  bool norm = false;                           // of the means is wanted
  std::chrono::duration<double> timeout{600};  // for what runs on the device
};

// "auto" is NCCL if each rank has a GPU of its own and all find the library, else "cuda-ipc" if those of
// each machine can map each other's memory, else "staged". Collective. Raises std::invalid_argument, on all ranks, if
// the options differ between ranks, or the exchange that is asked for cannot be had.
// `device` is the current one.
std::unique_ptr<Exchange> make_exchange(const std::shared_ptr<Communicator>& comm, int device,
                                        const ExchangeOptions& options);

}  // namespace fastseq::cuda
