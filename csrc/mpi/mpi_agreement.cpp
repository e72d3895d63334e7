#include "mpi/mpi_agreement.h"

#include <algorithm>
#include <array>
#include <thread>

#include "mpi/mpi_calls.h"

namespace fastseq {

namespace {

constexpr std::size_t kMaxMessage = 8192;
constexpr int kQuestionTag = 11;
constexpr int kAnswerTag = 12;
constexpr int kSpins = 2000;
constexpr auto kNap = std::chrono::microseconds(50);
constexpr auto kAnswerTime = std::chrono::seconds(2);

// What some ranks say together: an Outcome in the making, and the call that they have in common.
struct Ballot {
  Call call;
  Outcome outcome;
};

// MPI gives the signature. NOLINTNEXTLINE(misc-const-correctness)
void combine(void* in, void* inout, int* length, MPI_Datatype* /*type*/) {
  const auto earlier = [](int a, int b) { return a < 0 ? b : (b < 0 ? a : std::min(a, b)); };
  for (int i = 0; i < *length; ++i) {
    const Ballot& a = static_cast<const Ballot*>(in)[i];
    Ballot& b = static_cast<Ballot*>(inout)[i];
    b.outcome.same = a.outcome.same && b.outcome.same && a.call.operation == b.call.operation &&
                     a.call.bytes == b.call.bytes && a.call.detail == b.call.detail;
    b.outcome.failed_rank = earlier(a.outcome.failed_rank, b.outcome.failed_rank);
    b.outcome.alarmed_rank = earlier(a.outcome.alarmed_rank, b.outcome.alarmed_rank);
    b.outcome.weight += a.outcome.weight;
    b.outcome.value += a.outcome.value;
    b.outcome.flags |= a.outcome.flags;
  }
}

}  // namespace

MpiAgreement::MpiAgreement(MPI_Comm comm, std::chrono::duration<double> timeout) : comm_(comm), timeout_(timeout) {
  check_mpi(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
  check_mpi(MPI_Op_create(combine, 1, &combine_), "MPI_Op_create");
  check_mpi(MPI_Type_contiguous(sizeof(Ballot), MPI_BYTE, &type_), "MPI_Type_contiguous");
  check_mpi(MPI_Type_commit(&type_), "MPI_Type_commit");
}

Outcome MpiAgreement::agree(const Call& call) {
  // Kept where it is for the time that an unfinished exchange may still write to it.
  auto* ballot = new Ballot{.call = call, .outcome = outcome_of({&call, 1})};
  if (ballot->outcome.failed_rank == 0) ballot->outcome.failed_rank = rank_;
  if (ballot->outcome.alarmed_rank == 0) ballot->outcome.alarmed_rank = rank_;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(MPI_IN_PLACE, ballot, 1, type_, combine_, comm_, &request), "MPI_Iallreduce");
  wait(request);  // on a timeout the ballot stays allocated: MPI has no way to take the request back
  const Outcome outcome = ballot->outcome;
  delete ballot;
  return outcome;
}

void MpiAgreement::wait(MPI_Request& request) {
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t round = 0;; ++round) {
    int done = 0;
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done != 0) return;
    if (round < kSpins) continue;
    answer_questions();
    if (std::chrono::steady_clock::now() - start > timeout_) {
      throw CommunicationError(timeout_message(rank_, timeout_.count(), missing_ranks()));
    }
    std::this_thread::sleep_for(kNap);
  }
}

void MpiAgreement::answer_questions() const {
  int asked = 0;
  MPI_Status status;
  check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kQuestionTag, comm_, &asked, &status), "MPI_Iprobe");
  if (asked == 0) return;
  const int from = status.MPI_SOURCE;
  check_mpi(MPI_Recv(nullptr, 0, MPI_BYTE, from, kQuestionTag, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
  check_mpi(MPI_Send(nullptr, 0, MPI_BYTE, from, kAnswerTag, comm_), "MPI_Send");
}

std::string MpiAgreement::missing_ranks() {
  std::vector<bool> here(static_cast<std::size_t>(size_), false);
  here[static_cast<std::size_t>(rank_)] = true;
  for (int r = 0; r < size_; ++r) {
    // Empty messages leave at once: no rank waits for one that is stuck.
    if (r != rank_) check_mpi(MPI_Send(nullptr, 0, MPI_BYTE, r, kQuestionTag, comm_), "MPI_Send");
  }
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - start < kAnswerTime) {
    answer_questions();
    int answered = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kAnswerTag, comm_, &answered, &status), "MPI_Iprobe");
    if (answered != 0) {
      check_mpi(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kAnswerTag, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
      here[static_cast<std::size_t>(status.MPI_SOURCE)] = true;
    }
    std::this_thread::sleep_for(kNap);
  }
  std::string missing;
  for (int r = 0; r < size_; ++r) {
    if (here[static_cast<std::size_t>(r)]) continue;
    missing += (missing.empty() ? "rank " : ", rank ") + std::to_string(r);
  }
  return missing.empty() ? "slow ranks" : missing;
}

std::vector<Call> MpiAgreement::all_calls(const Call& call) const {
  std::vector<Call> calls(static_cast<std::size_t>(size_));
  check_mpi(MPI_Allgather(&call, sizeof(Call), MPI_BYTE, calls.data(), sizeof(Call), MPI_BYTE, comm_), "MPI_Allgather");
  return calls;
}

std::string MpiAgreement::message_of(int failed_rank, const std::string& own) const {
  std::array<char, kMaxMessage> text{};
  if (rank_ == failed_rank) own.copy(text.data(), text.size() - 1);
  check_mpi(MPI_Bcast(text.data(), text.size(), MPI_CHAR, failed_rank, comm_), "MPI_Bcast");
  return text.data();
}

}  // namespace fastseq
