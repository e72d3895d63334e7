// Agreement on calls, and waits, by MPI messages: what core/ranks/node_group.h does in shared memory.
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
  // How long a rank asks, after a timeout, which ranks are there.
  static constexpr auto kAnswerTime = std::chrono::seconds(2);

  // Uses `comm`, which must outlive it and have no other traffic meanwhile. Collective.
  MpiAgreement(MPI_Comm comm, std::chrono::duration<double> timeout);
  ~MpiAgreement();
  MpiAgreement(const MpiAgreement&) = delete;
  MpiAgreement& operator=(const MpiAgreement&) = delete;

  // Sends `call` to all ranks and returns their combined calls. Raises CommunicationError, naming the missing ranks, if
  // some do not arrive within the timeout.
  Outcome agree(const Call& call);
  // Each rank's plain data, in the order of the ranks.
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

  // Completes requests, on this or another communicator of the same ranks. Raises CommunicationError if that fails or
  // takes longer than the timeout; MPI may then still use the requests' memory.
  void wait(std::span<MPI_Request> requests);
  // Informs all other ranks that they cannot continue. The first cause counts.
  void break_up(const char* cause) noexcept;
  // For a rank that waits elsewhere: answers ranks that ask who is there; raises CommunicationError if another rank
  // broke up the group, or this one is interrupted.
  void look();
  // Ends another thread's wait, and all later ones, because this process ends.
  void interrupt() { interrupted_.store(true); }

 private:
  // `rests`: yields the core; the requests progress without this rank.
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
