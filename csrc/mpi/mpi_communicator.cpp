#include "mpi/mpi_communicator.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/dispatch.h"
#include "core/single_process.h"

namespace fastseq {

namespace {

// One MPI call moves at most this much: counts are ints, and some libraries fail before they overflow.
constexpr std::int64_t kMaxPieceBytes = std::int64_t{1} << 30;
// 16-bit sums go through an fp32 buffer of this many elements.
constexpr std::int64_t kWidenedPiece = std::int64_t{1} << 20;
constexpr std::size_t kMaxMessage = 8192;

const char* operation_name(std::int64_t operation) {
  static constexpr std::array kNames = {"?", "allreduce", "broadcast", "barrier", "exit", "fail"};
  return kNames.at(static_cast<std::size_t>(operation));
}

// Calls piece(first, count) until `total` elements are covered.
template <class Piece>
void for_each_piece(std::int64_t total, std::int64_t limit, Piece&& piece) {
  for (std::int64_t first = 0; first < total; first += limit) {
    piece(first, static_cast<int>(std::min(limit, total - first)));
  }
}

}  // namespace

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

MpiCommunicator::MpiCommunicator(MPI_Comm parent) {
  check(MPI_Comm_dup(parent, &comm_), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  MPI_Comm node = MPI_COMM_NULL;
  check(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
  check(MPI_Comm_rank(node, &local_rank_), "MPI_Comm_rank");
  check(MPI_Comm_size(node, &local_size_), "MPI_Comm_size");
  check(MPI_Comm_free(&node), "MPI_Comm_free");
}

void MpiCommunicator::check(int code, const char* call) const {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw CommunicationError("rank " + std::to_string(rank_) + ": " + call +
                           " failed: " + std::string(text.data(), static_cast<std::size_t>(length)));
}

void MpiCommunicator::agree(Operation operation, std::int64_t bytes, std::int64_t detail) {
  if (out_of_step_) {
    throw CommunicationError("rank " + std::to_string(rank_) + ": cannot " +
                             operation_name(static_cast<std::int64_t>(operation)) +
                             ": an earlier call found the ranks out of step; restart the job");
  }
  const auto code = static_cast<std::int64_t>(operation);
  // The largest of x and of -x tell whether all ranks have the same x; the last entry names the lowest failed rank.
  std::array<std::int64_t, 7> header = {
      code, -code, bytes, -bytes, detail, -detail, operation == Operation::kFail ? size_ - rank_ : 0};
  check(MPI_Allreduce(MPI_IN_PLACE, header.data(), header.size(), MPI_INT64_T, MPI_MAX, comm_), "MPI_Allreduce");
  if (const std::int64_t failed = header[6]; failed > 0) {
    const int failed_rank = size_ - static_cast<int>(failed);
    const std::string message = exchange_failure(failed_rank);
    if (operation != Operation::kFail) throw RemoteFailure(failed_rank, message);
    return;
  }
  if (header[0] != -header[1] || header[2] != -header[3] || header[4] != -header[5]) {
    const std::string message = describe_disagreement(code, bytes);
    if (operation != Operation::kLeave) throw CommunicationError(message);
  }
}

std::string MpiCommunicator::exchange_failure(int failed_rank) {
  std::array<char, kMaxMessage> text{};
  if (rank_ == failed_rank) failure_.copy(text.data(), text.size() - 1);
  check(MPI_Bcast(text.data(), text.size(), MPI_CHAR, failed_rank, comm_), "MPI_Bcast");
  return text.data();
}

std::string MpiCommunicator::describe_disagreement(std::int64_t code, std::int64_t bytes) {
  out_of_step_ = true;
  using Call = std::array<std::int64_t, 2>;  // which operation, of how many bytes
  const Call mine = {code, bytes};
  std::vector<Call> all(static_cast<std::size_t>(size_));
  check(MPI_Allgather(mine.data(), 2, MPI_INT64_T, all.data(), 2, MPI_INT64_T, comm_), "MPI_Allgather");
  std::string message = "the ranks are out of step:";
  int rank = 0;
  for (const auto& [operation, size] : all) {
    message += (rank == 0 ? " rank " : ", rank ") + std::to_string(rank);
    if (operation == static_cast<std::int64_t>(Operation::kLeave)) {
      message += " has exited";
    } else {
      message += std::string(" calls ") + operation_name(operation) + " of " + std::to_string(size) + " bytes";
    }
    ++rank;
  }
  return message + "; every rank must make the same calls";
}

void MpiCommunicator::allreduce(void* data, std::int64_t numel, DType dtype, double scale) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  agree(Operation::kAllreduce, numel * item, static_cast<std::int64_t>(dtype));
  dispatch(dtype, [&]<class T>(Type<T>) {
    auto* values = static_cast<T*>(data);
    if constexpr (std::is_same_v<T, Accumulate<T>>) {
      MPI_Datatype type = std::is_same_v<T, double> ? MPI_DOUBLE : MPI_FLOAT;
      for_each_piece(numel, kMaxPieceBytes / item, [&](std::int64_t first, int count) {
        check(MPI_Allreduce(MPI_IN_PLACE, values + first, count, type, MPI_SUM, comm_), "MPI_Allreduce");
      });
      scale_in_place(data, numel, dtype, scale);
    } else {
      // MPI knows no 16-bit floats, and sums of them lose bits: added and scaled in fp32, rounded once.
      std::vector<float> wide(static_cast<std::size_t>(std::min(numel, kWidenedPiece)));
      for_each_piece(numel, kWidenedPiece, [&](std::int64_t first, int count) {
        for (int i = 0; i < count; ++i) wide[static_cast<std::size_t>(i)] = static_cast<float>(values[first + i]);
        check(MPI_Allreduce(MPI_IN_PLACE, wide.data(), count, MPI_FLOAT, MPI_SUM, comm_), "MPI_Allreduce");
        scale_in_place(wide.data(), count, DType::kFloat32, scale);
        for (int i = 0; i < count; ++i) values[first + i] = T(wide[static_cast<std::size_t>(i)]);
      });
    }
  });
}

void MpiCommunicator::broadcast(std::span<std::byte> data, int root) {
  if (root < 0 || root >= size_) {
    throw CommunicationError("broadcast: root must be one of the " + std::to_string(size_) + " ranks, got " +
                             std::to_string(root));
  }
  const auto bytes = static_cast<std::int64_t>(data.size());
  agree(Operation::kBroadcast, bytes, root);
  for_each_piece(bytes, kMaxPieceBytes, [&](std::int64_t first, int count) {
    check(MPI_Bcast(data.data() + first, count, MPI_BYTE, root, comm_), "MPI_Bcast");
  });
}

void MpiCommunicator::barrier() { agree(Operation::kBarrier, 0, 0); }

std::shared_ptr<std::byte> MpiCommunicator::allocate(std::size_t bytes) { return allocate_aligned(bytes); }

void MpiCommunicator::fail(std::string_view message) {
  failure_ = message;
  agree(Operation::kFail, 0, 0);
}

void MpiCommunicator::leave() {
  if (!out_of_step_) agree(Operation::kLeave, 0, 0);
  out_of_step_ = true;
}

void MpiCommunicator::abort(int exit_code) {
  MPI_Abort(comm_, exit_code);
  std::_Exit(exit_code);
}

}  // namespace fastseq
