// The communicator over MPI messages, for ranks on several machines, or with memory that they cannot share.
#pragma once

#include <mpi.h>

#include <string>

#include "core/ranks/spread_communicator.h"
#include "mpi/mpi_agreement.h"

namespace fastseq {

// The version text of the linked MPI library.
std::string mpi_library_version();

class MpiCommunicator final : public SpreadCommunicator {
 public:
  // Uses `comm`, which nothing else may use, and `across`, for the ranks with this one's number on all machines (null
  // if there are none). They are not freed with this object: freeing is collective, and objects die at different times
  // on different ranks. MPI_Finalize frees them. With `half_wire`, fp32 is sent between machines as bf16.
  MpiCommunicator(MPI_Comm comm, Node node, MPI_Comm across, std::chrono::duration<double> timeout, bool half_wire);

  std::string_view transport() const override { return hierarchical() ? "hierarchy" : "mpi"; }
  bool any_thread() const override;
  std::string device_problem() const override;
  void sum_on_device(void* data, std::int64_t numel, DType dtype) override;
  void interrupt() override;
  [[noreturn]] void abort(int exit_code) override;

 protected:
  Outcome combine(const Call& call) override { return agreement_.agree(call); }
  std::string describe(const Call& call) override { return agreement_.describe(call, purpose()); }
  std::string message_of(int failed_rank, const std::string& own) override {
    return agreement_.message_of(failed_rank, own);
  }
  void send_to_all(std::span<std::byte> data, int root) override;
  void sum_over_ranks(void* data, std::int64_t numel, DType dtype, double factor) override;
  void sum_across(void* data, std::int64_t numel, DType dtype) override;
  void break_up(const char* cause) noexcept override { agreement_.break_up(cause); }

 private:
  void plain_sum(MPI_Comm comm, void* data, std::int64_t numel, DType dtype);

  MPI_Comm comm_;
  MPI_Comm across_;
  bool half_wire_;
  MpiAgreement agreement_;
};

}  // namespace fastseq
