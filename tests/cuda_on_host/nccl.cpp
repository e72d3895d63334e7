// NCCL on the host, for ranks that are processes or threads: collectives in a stream's order, through shared memory.
// They add in the reverse order of the ranks, as NCCL's order is not ours either.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "core/base/half.h"
#include "device.h"

namespace {

constexpr int kMaxRanks = 8;
constexpr std::size_t kMaxBytes = std::size_t{1} << 21;
constexpr int kSuccess = 0;
constexpr int kInvalidArgument = 4;
constexpr int kInProgress = 7;

// What all ranks see. Zeros are valid.
struct Shared {
  std::atomic<int> joined;
  struct Rank {
    std::atomic<std::int64_t> given;  // data of so many collectives
    std::atomic<std::int64_t> taken;  // the others'
    std::array<std::array<unsigned char, kMaxBytes>, 2> data;
  };
  std::array<Rank, kMaxRanks> ranks;
};

template <class T, class Wide>
void add_all(const Shared& shared, int size, std::int64_t number, std::size_t count, void* to) {
  for (std::size_t i = 0; i < count; ++i) {
    Wide sum{};
    for (int r = size; r-- > 0;) {
      T value;
      std::memcpy(&value, &shared.ranks[static_cast<std::size_t>(r)].data[number % 2][i * sizeof(T)], sizeof(T));
      sum += static_cast<Wide>(value);
    }
    static_cast<T*>(to)[i] = T(sum);
  }
}

}  // namespace

struct ncclComm {
  int rank;
  int size;
  std::string name;
  std::shared_ptr<Shared> shared;
  std::shared_ptr<std::atomic<bool>> aborted = std::make_shared<std::atomic<bool>>(false);
  std::int64_t number = 0;  // of the last collective
};

namespace {

// Gives this rank's data, waits for all, and calls `take`.
template <class Take>
int collective(ncclComm* comm, const void* from, std::size_t bytes, cudaStream_t stream, Take take) {
  if (bytes > kMaxBytes) return kInvalidArgument;
  const std::int64_t number = ++comm->number;
  const auto all = [shared = comm->shared, size = comm->size, aborted = comm->aborted](auto part, std::int64_t least) {
    return [=] {
      bool reached = true;
      for (int r = 0; r < size; ++r) reached = reached && (shared->ranks[static_cast<std::size_t>(r)].*part) >= least;
      return reached || *aborted;
    };
  };
  const auto mine = [shared = comm->shared, rank = comm->rank]() -> Shared::Rank& {
    return shared->ranks[static_cast<std::size_t>(rank)];
  };
  cuda_on_host::wait_until(stream, all(&Shared::Rank::taken, number - 2));  // the place is free again
  cuda_on_host::enqueue(stream, [=] {
    std::memcpy(mine().data[number % 2].data(), from, bytes);
    mine().given = number;
  });
  cuda_on_host::wait_until(stream, all(&Shared::Rank::given, number));
  cuda_on_host::enqueue(stream, [=, shared = comm->shared, aborted = comm->aborted] {
    if (!*aborted) take(*shared, number);
    mine().taken = number;
  });
  return kSuccess;
}

}  // namespace

extern "C" {
struct ncclUniqueId {
  char bytes[128];
};

int ncclGetVersion(int* version) {
  *version = 22800;
  return kSuccess;
}

const char* ncclGetErrorString(int code) { return code == kSuccess ? "no error" : "invalid argument"; }

int ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  std::snprintf(id->bytes, sizeof id->bytes, "/nccl_on_host_%08x%08x", random(), random());
  return kSuccess;
}

// Not blocking: ncclCommGetAsyncError says when all ranks have come.
int ncclCommInitRankConfig(ncclComm** comm, int size, ncclUniqueId id, int rank, void* /*config*/) {
  if (size > kMaxRanks) return kInvalidArgument;
  const int file = shm_open(id.bytes, O_RDWR | O_CREAT, S_IRUSR | S_IWUSR);
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return kInvalidArgument;
  void* const memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  auto* const shared = static_cast<Shared*>(memory);
  const auto unmap = [](Shared* mapped) { munmap(mapped, sizeof(Shared)); };
  *comm = new ncclComm{.rank = rank, .size = size, .name = id.bytes, .shared = {shared, unmap}};
  ++shared->joined;
  return kInProgress;
}

int ncclCommGetAsyncError(ncclComm* comm, int* state) {
  const bool all = comm->shared->joined >= comm->size;
  if (all) shm_unlink(comm->name.c_str());  // nobody needs it any more
  *state = all ? kSuccess : kInProgress;
  return kSuccess;
}

int ncclCommAbort(ncclComm* comm) {
  *comm->aborted = true;
  delete comm;
  return kSuccess;
}

int ncclAllReduce(const void* from, void* to, std::size_t count, int type, int /*operation*/, ncclComm* comm,
                  cudaStream_t stream) {
  const std::size_t item = type == 8 ? 8 : type == 7 ? 4 : 2;
  return collective(comm, from, count * item, stream,
                    [=, size = comm->size](const Shared& shared, std::int64_t number) {
                      if (type == 8) add_all<double, double>(shared, size, number, count, to);
                      if (type == 7) add_all<float, float>(shared, size, number, count, to);
                      if (type == 6) add_all<fastseq::Float16, float>(shared, size, number, count, to);
                      if (type == 9) add_all<fastseq::BFloat16, float>(shared, size, number, count, to);
                    });
}

int ncclAllGather(const void* from, void* to, std::size_t count, int /*type: bytes*/, ncclComm* comm,
                  cudaStream_t stream) {
  return collective(comm, from, count, stream, [=, size = comm->size](const Shared& shared, std::int64_t number) {
    for (int r = 0; r < size; ++r) {
      std::memcpy(static_cast<char*>(to) + static_cast<std::size_t>(r) * count,
                  shared.ranks[static_cast<std::size_t>(r)].data[number % 2].data(), count);
    }
  });
}
}
