#include "mpi/mpi_communicator.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "core/base/pack.h"
#include "core/ranks/single_process.h"
#include "core/ranks/weighted_sum.h"
#include "mpi/direct_exchange.h"
#include "mpi/mpi_calls.h"

namespace fastseq {

namespace {

// With more ranks than this, a message to each is slower than the MPI library's algorithms.
constexpr int kMaxDirect = 16;
constexpr std::int64_t kDeviceSum = -2;  // tells it from sums on the host

}  // namespace

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

MpiCommunicator::MpiCommunicator(MPI_Comm comm, Node node, MPI_Comm across, std::chrono::duration<double> timeout,
                                 bool half_wire)
    : SpreadCommunicator(rank_in(comm), size_of(comm), std::move(node)),
      comm_(comm),
      across_(across),
      half_wire_(half_wire),
      agreement_(comm, timeout) {
  if (this->node().group) this->node().group->set_idle([this] { agreement_.look(); });
}

bool MpiCommunicator::any_thread() const {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  return level == MPI_THREAD_MULTIPLE;
}

void MpiCommunicator::sum_over_ranks(void* data, std::int64_t numel, DType dtype, double factor) {
  if (dtype == DType::kFloat16 || dtype == DType::kBFloat16) {
    // MPI knows no 16-bit floats, and sums of them lose bits.
    direct_exchange(comm_, agreement_, data, numel, dtype, agreement_.gather(factor));
    return;
  }
  scale_in_place(data, numel, dtype, factor);
  plain_sum(comm_, data, numel, dtype);
}

void MpiCommunicator::plain_sum(MPI_Comm comm, void* data, std::int64_t numel, DType dtype) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  MPI_Datatype type = dtype == DType::kFloat64 ? MPI_DOUBLE : MPI_FLOAT;
  for_each_piece(numel, kMaxPieceBytes / item, [&](std::int64_t first, int count) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallreduce(MPI_IN_PLACE, static_cast<std::byte*>(data) + first * item, count, type, MPI_SUM, comm,
                             &request),
              "MPI_Iallreduce");
    agreement_.wait({&request, 1});
  });
}

void MpiCommunicator::sum_across(void* data, std::int64_t numel, DType dtype) {
  int nodes = 1;
  check_mpi(MPI_Comm_size(across_, &nodes), "MPI_Comm_size");
  const std::vector<double> ones(static_cast<std::size_t>(nodes), 1.0);
  if (half_wire_ && dtype == DType::kFloat32) {
    Landing<std::vector<std::uint16_t>> narrow(static_cast<std::size_t>(numel));
    scaled_copy(data, dtype, numel, 1.0, narrow->data(), DType::kBFloat16);
    direct_exchange(across_, agreement_, narrow->data(), numel, DType::kBFloat16, ones);
    scaled_copy(narrow->data(), DType::kBFloat16, numel, 1.0, data, dtype);
    narrow.end();
  } else if (nodes <= kMaxDirect || item_size(dtype) == 2) {
    direct_exchange(across_, agreement_, data, numel, dtype, ones);
  } else {
    plain_sum(across_, data, numel, dtype);
  }
}

void MpiCommunicator::send_to_all(std::span<std::byte> data, int root) {
  for_each_piece(static_cast<std::int64_t>(data.size()), kMaxPieceBytes, [&](std::int64_t first, int count) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibcast(data.data() + first, count, MPI_BYTE, root, comm_, &request), "MPI_Ibcast");
    agreement_.wait({&request, 1});
  });
}

std::string MpiCommunicator::device_problem() const {
  // An extension of several libraries, which may be built without it.
  const auto query = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "MPIX_Query_cuda_support"));
  if (query != nullptr && query() == 1) return "";
  return "this MPI library was built without CUDA";
}

void MpiCommunicator::sum_on_device(void* data, std::int64_t numel, DType dtype) {
  const auto bytes = static_cast<std::int64_t>(static_cast<std::size_t>(numel) * item_size(dtype));
  agree({.operation = Operation::kAllreduce, .bytes = bytes, .detail = kDeviceSum});
  // Blocking: libraries that take memory of GPUs do so in their blocking reductions only.
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  MPI_Datatype type = dtype == DType::kFloat64 ? MPI_DOUBLE : MPI_FLOAT;
  together(Operation::kAllreduce, [&] {
    for_each_piece(numel, kMaxPieceBytes / item, [&](std::int64_t first, int count) {
      std::byte* const piece = static_cast<std::byte*>(data) + first * item;
      check_mpi(MPI_Allreduce(MPI_IN_PLACE, piece, count, type, MPI_SUM, comm_), "MPI_Allreduce");
    });
  });
}

void MpiCommunicator::interrupt() {
  agreement_.interrupt();
  SpreadCommunicator::interrupt();
}

void MpiCommunicator::abort(int exit_code) {
  MPI_Abort(comm_, exit_code);
  std::_Exit(exit_code);
}

}  // namespace fastseq
