// NCCL's communicator, from the library that is found when it is needed: PyTorch's own, or the system's.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/dtype.h"
#include "core/ranks/communicator.h"
#include "cuda/streams.h"

struct ncclComm;

namespace fastseq::cuda {

// Empty, or why this process cannot use NCCL.
std::string nccl_problem();

// All calls are made in the same order by all ranks. Where NCCL reports an error, or what was begun does not end within
// the timeout, NCCL is ended: streams go on, without results, and all later calls raise CommunicationError.
class NcclCommunicator {
 public:
  // That of `comm`, made at the first call: collective. Raises std::runtime_error, on all ranks, if it cannot be made.
  static std::shared_ptr<NcclCommunicator> of(const std::shared_ptr<Communicator>& comm, int device,
                                              std::chrono::duration<double> timeout);
  NcclCommunicator(Communicator& comm, int device, std::chrono::duration<double> timeout);
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  // data[i] becomes the sum over the ranks, in the stream's order.
  void allreduce(void* data, std::int64_t numel, DType dtype, cudaStream_t stream);
  // The `bytes` of rank r at data + r * bytes come to all.
  void allgather(std::byte* data, std::size_t bytes, cudaStream_t stream);
  // Looks after what was begun until `last` has come, or is forgotten.
  void watch(const Event& last);
  void forget(const Event& last);
  // Raises CommunicationError if it was ended.
  void check();

 private:
  bool usable();
  void check_locked() const;
  template <class Call>
  void run(Call&& call);
  // Waits until NCCL has done what the host has to wait for; raises if it fails, or after the timeout.
  void wait_until_ready();
  void end(const std::string& why);
  void look_after();

  int rank_;
  int size_;
  int device_;
  std::chrono::duration<double> timeout_;
  std::mutex mutex_;  // of all below
  std::condition_variable changed_;
  ncclComm* comm_ = nullptr;
  std::string ended_;  // why
  const Event* last_ = nullptr;
  std::chrono::steady_clock::time_point since_;
  bool closing_ = false;
  std::thread watcher_;
};

}  // namespace fastseq::cuda
