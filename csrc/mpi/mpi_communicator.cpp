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

void scale_in_place(void* data, std::int64_t numel, DType dtype, double factor) {
  if (factor == 1.0) return;
  const std::array<const void*, 1> source = {data};
  const std::array<void*, 1> destination = {data};
  weighted_sum(source, {{factor}}, numel, dtype, destination);
}

}  // namespace

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

MpiCommunicator::MpiCommunicator(MPI_Comm comm, Node node, std::chrono::duration<double> timeout, bool half_wire)
    : comm_(comm), node_(std::move(node)), half_wire_(half_wire), agreement_(comm, timeout) {
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  if (node_.group) node_.group->set_idle([this] { agreement_.look(); });
}

bool MpiCommunicator::any_thread() const {
  int level = MPI_THREAD_SINGLE;
  MPI_Query_thread(&level);
  return level == MPI_THREAD_MULTIPLE;
}

Outcome MpiCommunicator::agree(const Call& call) {
  standing_.check(rank_, call.operation);
  try {
    const Outcome outcome = agreement_.agree(call);
    standing_.note(outcome);
    if (outcome.failed_rank >= 0) {
      const std::string message = agreement_.message_of(outcome.failed_rank, failure_);
      if (call.operation == Operation::kFail || call.operation == Operation::kLeave) return outcome;
      throw RemoteFailure(outcome.failed_rank, message);
    }
    if (!outcome.same) throw CommunicationError(agreement_.describe(call, purpose()));
    return outcome;
  } catch (const CommunicationError& error) {
    standing_.end(error.what());
    throw;
  }
}

template <class Work>
auto MpiCommunicator::together(Operation operation, Work&& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    const Cause cause = current_cause(rank_, operation);
    agreement_.break_up(cause.data());
    if (node_.group) node_.group->break_up(cause.data());
    standing_.end(error.what());
    throw;
  }
}

Reduced MpiCommunicator::allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) {
  Call call = allreduce_call(numel, dtype, reduction);
  const auto bytes = static_cast<std::size_t>(call.bytes);
  if (hierarchical()) call.place = node_.memory->place_of(data, bytes);
  const Outcome outcome = agree(call);
  double factor = 1.0;
  if (reduction.mean) factor = call.weight == 0.0 ? 0.0 : call.weight / outcome.weight;
  return together(call.operation, [&] {
    if (hierarchical()) {
      hierarchical_sum({static_cast<std::byte*>(data), bytes}, dtype, factor, call);
    } else {
      flat_sum(data, numel, dtype, factor);
    }
    Reduced reduced = reduced_of(outcome);
    // The ranks have the same bits, and get the same sum of them without another message.
    if (reduction.squares) reduced.sum_of_squares = facts_of(data, numel, dtype).sum_of_squares;
    return reduced;
  });
}

void MpiCommunicator::flat_sum(void* data, std::int64_t numel, DType dtype, double factor) {
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

void MpiCommunicator::hierarchical_sum(std::span<std::byte> data, DType dtype, double factor, const Call& call) {
  Call local = call;
  local.weight = factor;
  const std::vector<Call> calls = node_.group->exchange(local);
  std::vector<double> factors;
  factors.reserve(calls.size());
  for (const Call& each : calls) factors.push_back(each.weight);
  const std::size_t item = item_size(dtype);
  node_.memory->exchange(data, calls, [&](const Peers& peers, std::size_t /*first*/, std::size_t count) {
    if (node_.rank >= node_.slices) return 0.0;
    const Slice slice = slice_of(static_cast<std::int64_t>(count / item), dtype, node_.rank, node_.slices);
    const std::size_t start = static_cast<std::size_t>(slice.begin) * item;
    const std::int64_t numel = slice.end - slice.begin;
    std::vector<const void*> sources;
    sources.reserve(peers.size());
    for (const std::byte* peer : peers) sources.push_back(peer + start);
    std::byte* sum = peers[static_cast<std::size_t>(node_.rank)] + start;
    const std::array<void*, 1> destination = {sum};
    weighted_sum(sources, factors, numel, dtype, destination);
    sum_across(sum, numel, dtype);
    for (std::byte* peer : peers) {
      if (peer + start != sum) std::memcpy(peer + start, sum, static_cast<std::size_t>(numel) * item);
    }
    return 0.0;
  });
}

void MpiCommunicator::sum_across(void* data, std::int64_t numel, DType dtype) {
  int nodes = 1;
  check_mpi(MPI_Comm_size(node_.across, &nodes), "MPI_Comm_size");
  const std::vector<double> ones(static_cast<std::size_t>(nodes), 1.0);
  if (half_wire_ && dtype == DType::kFloat32) {
    Landing<std::vector<std::uint16_t>> narrow(static_cast<std::size_t>(numel));
    scaled_copy(data, dtype, numel, 1.0, narrow->data(), DType::kBFloat16);
    direct_exchange(node_.across, agreement_, narrow->data(), numel, DType::kBFloat16, ones);
    scaled_copy(narrow->data(), DType::kBFloat16, numel, 1.0, data, dtype);
    narrow.end();
  } else if (nodes <= kMaxDirect || item_size(dtype) == 2) {
    direct_exchange(node_.across, agreement_, data, numel, dtype, ones);
  } else {
    plain_sum(node_.across, data, numel, dtype);
  }
}

void MpiCommunicator::broadcast(std::span<std::byte> data, int root) {
  check_root(root, size_);
  const auto bytes = static_cast<std::int64_t>(data.size());
  agree({.operation = Operation::kBroadcast, .bytes = bytes, .detail = root});
  together(Operation::kBroadcast, [&] {
    for_each_piece(bytes, kMaxPieceBytes, [&](std::int64_t first, int count) {
      MPI_Request request = MPI_REQUEST_NULL;
      check_mpi(MPI_Ibcast(data.data() + first, count, MPI_BYTE, root, comm_, &request), "MPI_Ibcast");
      agreement_.wait({&request, 1});
    });
  });
}

void MpiCommunicator::barrier() { agree({.operation = Operation::kBarrier}); }

std::shared_ptr<std::byte> MpiCommunicator::allocate(std::size_t bytes) {
  if (hierarchical()) node_.memory->check_numbers();
  agree({.operation = Operation::kAllocate, .bytes = static_cast<std::int64_t>(bytes)});
  return together(Operation::kAllocate, [&] {
    const auto shared = hierarchical() ? node_.memory->allocate(bytes) : nullptr;
    return shared ? shared : allocate_aligned(bytes);
  });
}

bool MpiCommunicator::is_shared(const void* data, std::size_t bytes) const {
  return hierarchical() && node_.memory->place_of(data, bytes) != kPrivate;
}

void MpiCommunicator::sum_over_nodes(void* data, std::int64_t numel, DType dtype) {
  together(Operation::kAllreduce, [&] { sum_across(data, numel, dtype); });
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

void MpiCommunicator::fail(std::string_view message) {
  failure_ = message;
  agree({.operation = Operation::kFail});
}

void MpiCommunicator::leave() {
  if (standing_.ended()) return;
  try {
    agree({.operation = Operation::kLeave});
  } catch (const CommunicationError&) {  // others continue
    standing_.end(exit_message(rank_));
  }
}

void MpiCommunicator::interrupt() {
  agreement_.interrupt();
  if (node_.group) node_.group->interrupt();
}

void MpiCommunicator::abort(int exit_code) {
  MPI_Abort(comm_, exit_code);
  std::_Exit(exit_code);
}

}  // namespace fastseq
