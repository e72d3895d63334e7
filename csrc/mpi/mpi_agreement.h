// How ranks agree on a call by messages, and wait for each other: what core/ranks/node_group.h does in shared memory.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/ranks/agreement.h"
#include "mpi/mpi_calls.h"

namespace fastseq {

class MpiAgreement {
 public:
  // For how long a rank that has waited in vain asks who is there.
  static constexpr auto kAnswerTime = std::chrono::seconds(2);

  // Works on `comm`, which outlives it, and which carries nothing else meanwhile. Collective.
  MpiAgreement(MPI_Comm comm, std::chrono::duration<double> timeout);
  ~MpiAgreement();
  MpiAgreement(const MpiAgreement&) = delete;
  MpiAgreement& operator=(const MpiAgreement&) = delete;

  // Tells all ranks `call` and returns what they say together. Raises CommunicationError, naming the missing ranks, if
  // some do not come within the timeout.
  Outcome agree(const Call& call);
  // What each rank gives, in the order of the ranks: plain data.
  template <class T>
  std::vector<T> gather(const T& mine) {
    static_assert(std::is_trivially_copyable_v<T>);
    Landing<std::vector<T>> all(static_cast<std::size_t>(size_) + 1, mine);  // mine at the end
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallgather(&all->back(), sizeof(T), MPI_BYTE, all->data(), sizeof(T), MPI_BYTE, comm_, &request),
              "MPI_Iallgather");
    wait({&request, 1}, true);
    all.end();
    all->pop_back();
    return *all;
  }
  // Every rank's call and purpose, as one sentence on their disagreement.
  std::string describe(const Call& call, std::string_view purpose);
  // The failed rank's message, on every rank; `own` is this rank's.
  std::string message_of(int failed_rank, const std::string& own);

  // Completes requests, on this or another communicator of the same ranks. Raises CommunicationError if that takes
  // longer than the timeout or cannot be; then MPI may still use the requests' memory.
  void wait(std::span<MPI_Request> requests);
  // Tells all other ranks that they cannot go on from here. The first cause counts.
  void break_up(const char* cause) noexcept;
  // For a rank that waits elsewhere: answers ranks that ask who is there; raises CommunicationError if another rank has
  // broken up, and if this one is interrupted.
  void look();
  // Ends what another thread waits for, and all later waiting: this process ends.
  void interrupt() { interrupted_.store(true); }

 private:
  // `rests`: lets others have the core; what is waited for does not need this rank's help.
  void wait(std::span<MPI_Request> requests, bool rests);
  void answer_questions() const;
  void raise_if_broken() const;
  std::string missing_ranks();

  MPI_Comm comm_;
  std::chrono::duration<double> timeout_;
  int rank_ = 0;
  int size_ = 1;
  MPI_Op combine_ = MPI_OP_NULL;
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
  bool broken_ = false;
  Landing<Cause> cause_;
  std::atomic<bool> interrupted_ = false;
};

}  // namespace fastseq
