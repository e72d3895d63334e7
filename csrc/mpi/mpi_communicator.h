// The communicator over MPI, on host memory.
#pragma once

#include <mpi.h>

#include <string>

#include "core/communicator.h"

namespace fastseq {

// The version text of the MPI library that this file is linked with.
std::string mpi_library_version();

class MpiCommunicator final : public Communicator {
 public:
  // Works on a duplicate of `parent`, so that its messages never meet the caller's. Collective over `parent`.
  // The duplicate is not freed when this object is: freeing is collective, and objects die at different times on
  // different ranks. MPI_Finalize takes it.
  explicit MpiCommunicator(MPI_Comm parent);

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  std::string_view transport() const override { return "mpi"; }

  void allreduce(void* data, std::int64_t numel, DType dtype, double scale) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override;
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void fail(std::string_view message) override;
  void leave() override;
  [[noreturn]] void abort(int exit_code) override;

 private:
  enum class Operation : std::int64_t { kAllreduce = 1, kBroadcast, kBarrier, kLeave, kFail };

  // Learns that all ranks are about to do the same; raises RemoteFailure or CommunicationError if not.
  void agree(Operation operation, std::int64_t bytes, std::int64_t detail);
  // The failed rank's message, on every rank.
  std::string exchange_failure(int failed_rank);
  // Who calls what, on every rank. No call can be matched up after that.
  std::string describe_disagreement(std::int64_t code, std::int64_t bytes);
  void check(int code, const char* call) const;

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  bool out_of_step_ = false;  // the ranks disagreed, or this one has left
  std::string failure_;
};

}  // namespace fastseq
