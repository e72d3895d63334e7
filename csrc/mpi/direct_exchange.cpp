#include "mpi/direct_exchange.h"

#include <algorithm>
#include <array>
#include <vector>

#include "core/ranks/weighted_sum.h"
#include "mpi/mpi_calls.h"

namespace fastseq {

namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;
constexpr int kScatterTag = 1;
constexpr int kGatherTag = 2;

// The exchange of one piece of the data, in two phases that may overlap those of other pieces.
class Piece {
 public:
  Piece(MPI_Comm comm, MpiAgreement& agreement, std::byte* data, std::int64_t numel, DType dtype)
      : comm_(comm), agreement_(&agreement), data_(data), numel_(numel), dtype_(dtype) {
    check_mpi(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size_), "MPI_Comm_size");
  }

  // Receives all other ranks' data of this rank's slice, and sends them this rank's data of theirs.
  void start_scatter() {
    const Slice mine = slice(rank_);
    const std::size_t bytes = bytes_of(mine);
    received_.resize(bytes * static_cast<std::size_t>(size_));
    for_others([&](int r) { receive(r, received_.data() + bytes * static_cast<std::size_t>(r), bytes, kScatterTag); });
    for_others([&](int r) { send(r, start_of(slice(r)), bytes_of(slice(r)), kScatterTag); });
  }

  void finish_scatter(std::span<const double> factors) {
    wait();
    const Slice mine = slice(rank_);
    const std::size_t bytes = bytes_of(mine);
    std::vector<const void*> sources;
    sources.reserve(static_cast<std::size_t>(size_));
    for (int r = 0; r < size_; ++r) {
      sources.push_back(r == rank_ ? start_of(mine) : received_.data() + bytes * static_cast<std::size_t>(r));
    }
    const std::array<void*, 1> destination = {start_of(mine)};
    weighted_sum(sources, factors, mine.end - mine.begin, dtype_, destination);
    received_ = {};
  }

  void start_gather() {
    for_others([&](int r) { receive(r, start_of(slice(r)), bytes_of(slice(r)), kGatherTag); });
    const Slice mine = slice(rank_);
    for_others([&](int r) { send(r, start_of(mine), bytes_of(mine), kGatherTag); });
  }

  void wait() {
    agreement_->wait(requests_);
    requests_.clear();
  }

  // After an error, cancels pending receives; sends cannot be cancelled.
  void cancel() noexcept {
    const std::size_t receives = std::min(requests_.size(), static_cast<std::size_t>(size_ - 1));
    for (std::size_t i = 0; i < receives; ++i) {
      if (requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
    }
    int done = 0;
    MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
  }

 private:
  Slice slice(int r) const { return slice_of(numel_, dtype_, r, size_); }
  std::size_t bytes_of(const Slice& s) const { return static_cast<std::size_t>(s.end - s.begin) * item_size(dtype_); }
  std::byte* start_of(const Slice& s) const { return data_ + static_cast<std::size_t>(s.begin) * item_size(dtype_); }

  // Loops over the other ranks, starting with the neighbour, so that not all send to one at the same time.
  template <class Fn>
  void for_others(Fn&& fn) {
    for (int step = 1; step < size_; ++step) fn((rank_ + step) % size_);
  }
  void receive(int r, std::byte* to, std::size_t bytes, int tag) {
    requests_.push_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, r, tag, comm_, &requests_.back()), "MPI_Irecv");
  }
  void send(int r, const std::byte* from, std::size_t bytes, int tag) {
    requests_.push_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, r, tag, comm_, &requests_.back()), "MPI_Isend");
  }

  MPI_Comm comm_;
  MpiAgreement* agreement_;
  std::byte* data_;
  std::int64_t numel_;
  DType dtype_;
  int rank_ = 0;
  int size_ = 1;
  std::vector<std::byte> received_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

void direct_exchange(MPI_Comm comm, MpiAgreement& agreement, void* data, std::int64_t numel, DType dtype,
                     std::span<const double> factors) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  Landing<std::vector<Piece>> pieces;
  for_each_piece(numel, kPieceBytes / item, [&](std::int64_t first, int count) {
    pieces->emplace_back(comm, agreement, static_cast<std::byte*>(data) + first * item, count, dtype);
  });
  // One piece is scattered while the one before it is gathered: the wire is busy both ways.
  const std::size_t count = pieces->size();
  try {
    for (std::size_t i = 0; i < count + 2; ++i) {
      if (i < count) (*pieces)[i].start_scatter();
      if (i >= 1 && i - 1 < count) {
        (*pieces)[i - 1].finish_scatter(factors);
        (*pieces)[i - 1].start_gather();
      }
      if (i >= 2) (*pieces)[i - 2].wait();
    }
  } catch (...) {
    for (Piece& piece : *pieces) piece.cancel();
    throw;
  }
  pieces.end();
}

}  // namespace fastseq
