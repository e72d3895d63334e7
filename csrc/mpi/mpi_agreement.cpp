#include "mpi/mpi_agreement.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <thread>

#include "mpi/mpi_calls.h"

namespace fastseq {

namespace {

constexpr std::size_t kMaxMessage = 8192;
constexpr int kQuestionTag = 11;
constexpr int kAnswerTag = 12;
constexpr int kBrokenTag = 13;
constexpr int kSpins = 2000;
constexpr auto kNap = std::chrono::microseconds(50);
constexpr int kYields = 20000;  // rounds before a rank sleeps between two checks

// Some ranks' combined calls: a partial Outcome, and their common call.
struct Ballot {
  Call call;
  Outcome outcome;
};

// A rank's report if the ranks disagree.
struct Statement {
  Call call;
  Purpose purpose;
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
    b.outcome.left_rank = earlier(a.outcome.left_rank, b.outcome.left_rank);
    b.outcome.alarmed_rank = earlier(a.outcome.alarmed_rank, b.outcome.alarmed_rank);
    b.outcome.weight += a.outcome.weight;
    b.outcome.value += a.outcome.value;
    b.outcome.flags |= a.outcome.flags;
    if (a.outcome.place != b.outcome.place) b.outcome.place = kPrivate;
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

MpiAgreement::~MpiAgreement() {
  if (!broken_) cause_.end();
}

Outcome MpiAgreement::agree(const Call& call) {
  Landing<Ballot> ballot(Ballot{.call = call, .outcome = outcome_of({&call, 1})});
  for (int* rank : {&ballot->outcome.failed_rank, &ballot->outcome.left_rank, &ballot->outcome.alarmed_rank}) {
    if (*rank == 0) *rank = rank_;
  }
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(MPI_IN_PLACE, &*ballot, 1, type_, combine_, comm_, &request), "MPI_Iallreduce");
  wait({&request, 1}, true);
  ballot.end();
  raise_if_broken();  // a rank that arrives late gets the others' data, but they have left
  return ballot->outcome;
}

void MpiAgreement::wait(std::span<MPI_Request> requests) { wait(requests, false); }

void MpiAgreement::wait(std::span<MPI_Request> requests, bool rests) {
  std::chrono::steady_clock::time_point deadline{};
  for (std::int64_t round = 0;; ++round) {
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (done != 0) return;
    if (round < kSpins) continue;
    const bool awake = !rests || round < kYields;
    if (awake && round % 64 != 0) {
      std::this_thread::yield();
      continue;
    }
    look();
    const auto now = std::chrono::steady_clock::now();
    if (deadline == std::chrono::steady_clock::time_point{}) deadline = now + clock_time(timeout_);
    if (now > deadline) {
      const std::string cause = timeout_message(rank_, timeout_.count(), missing_ranks());
      break_up(cause.c_str());
      throw LostRanks(cause, cause);
    }
    if (!awake) std::this_thread::sleep_for(kNap);
  }
}

void MpiAgreement::break_up(const char* cause) noexcept {
  if (broken_) return;
  broken_ = true;
  std::snprintf(cause_->data(), cause_->size(), "%s", cause);
  for (int r = 0; r < size_; ++r) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (r == rank_ || MPI_Isend(cause_->data(), static_cast<int>(cause_->size()), MPI_CHAR, r, kBrokenTag, comm_,
                                &request) != MPI_SUCCESS) {
      continue;
    }
    MPI_Request_free(&request);
  }
}

void MpiAgreement::look() {
  answer_questions();
  if (interrupted_.load()) {
    const std::string cause = exit_message(rank_);
    break_up(cause.c_str());
    throw LostRanks(cause, cause);
  }
  raise_if_broken();
}

void MpiAgreement::raise_if_broken() const {
  int told = 0;
  MPI_Status status;
  check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kBrokenTag, comm_, &told, &status), "MPI_Iprobe");
  if (told == 0) return;
  Cause cause{};
  check_mpi(MPI_Recv(cause.data(), cause.size(), MPI_CHAR, status.MPI_SOURCE, kBrokenTag, comm_, MPI_STATUS_IGNORE),
            "MPI_Recv");
  throw lost_ranks(rank_, cause.data());
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
    // Empty messages are sent at once: this does not wait for a stuck rank.
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
  return missing.empty() ? "data of ranks that have arrived" : missing;
}

std::string MpiAgreement::describe(const Call& call, std::string_view purpose) {
  std::vector<Call> calls;
  std::vector<Purpose> purposes;
  for (const Statement& said : gather(Statement{.call = call, .purpose = purpose_of(purpose)})) {
    calls.push_back(said.call);
    purposes.push_back(said.purpose);
  }
  return describe_disagreement(calls, purposes);
}

std::string MpiAgreement::message_of(int failed_rank, const std::string& own) {
  Landing<std::array<char, kMaxMessage>> text;
  text->fill('\0');
  if (rank_ == failed_rank) own.copy(text->data(), text->size() - 1);
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Ibcast(text->data(), static_cast<int>(text->size()), MPI_CHAR, failed_rank, comm_, &request),
            "MPI_Ibcast");
  wait({&request, 1}, true);
  text.end();
  return text->data();
}

}  // namespace fastseq
