#include "cuda/exchanges/nccl_communicator.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <climits>
#include <map>
#include <utility>

#include "core/ranks/agreement.h"
#include "cuda/exchanges/ask_all.h"

namespace fastseq::cuda {

namespace {

// What we use of nccl.h, version 2.18: later ones read it, too.
struct UniqueId {
  std::array<char, 128> bytes;
};
struct Config {
  std::size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = 0;
  int cluster_size = INT_MIN;  // undefined: NCCL decides
  int min_blocks = INT_MIN;
  int max_blocks = INT_MIN;
  const char* network = nullptr;
  int split_share = INT_MIN;
};
constexpr int kOldest = 21800;
constexpr int kSuccess = 0;
constexpr int kInProgress = 7;
constexpr int kSum = 0;
constexpr int kInt8 = 0;

int type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 6;
    case DType::kFloat32:
      return 7;
    case DType::kFloat64:
      return 8;
    case DType::kBFloat16:
      return 9;
  }
  throw std::invalid_argument("NCCL: unknown dtype");
}

struct Library {
  int (*get_version)(int*);
  int (*get_unique_id)(UniqueId*);
  int (*init_rank_config)(ncclComm**, int, UniqueId, int, Config*);
  int (*get_async_error)(ncclComm*, int*);
  int (*abort)(ncclComm*);
  int (*all_reduce)(const void*, void*, std::size_t, int, int, ncclComm*, cudaStream_t);
  int (*all_gather)(const void*, void*, std::size_t, int, ncclComm*, cudaStream_t);
  const char* (*get_error_string)(int);
  std::string problem;
};

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Library load() {
  Library nccl{};
  void* const library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();  // NOLINT(concurrency-mt-unsafe): glibc's is
    nccl.problem = std::string("NCCL was not found (") + (why == nullptr ? "" : why) + ")";
    return nccl;
  }
  int version = 0;
  if (!find(library, "ncclGetVersion", nccl.get_version) || nccl.get_version(&version) != kSuccess ||
      version < kOldest || !find(library, "ncclGetUniqueId", nccl.get_unique_id) ||
      !find(library, "ncclCommInitRankConfig", nccl.init_rank_config) ||
      !find(library, "ncclCommGetAsyncError", nccl.get_async_error) || !find(library, "ncclCommAbort", nccl.abort) ||
      !find(library, "ncclAllReduce", nccl.all_reduce) || !find(library, "ncclAllGather", nccl.all_gather) ||
      !find(library, "ncclGetErrorString", nccl.get_error_string)) {
    nccl.problem = "NCCL's version is " + std::to_string(version) + ", 2.18 or later is needed";
  }
  return nccl;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

std::string text_of(const char* call, int code) {
  return std::string(call) + " failed: " + library().get_error_string(code);
}

}  // namespace

std::string nccl_problem() { return library().problem; }

std::shared_ptr<NcclCommunicator> NcclCommunicator::of(const std::shared_ptr<Communicator>& comm, int device,
                                                       std::chrono::duration<double> timeout) {
  using Made = std::pair<std::weak_ptr<Communicator>, std::shared_ptr<NcclCommunicator>>;
  static std::mutex mutex;
  // Never destroyed: at the end of the process CUDA may be gone.
  static auto* const made = new std::map<std::pair<Communicator*, int>, Made>;
  std::shared_ptr<NcclCommunicator> known;
  {
    const std::scoped_lock lock(mutex);
    std::erase_if(*made, [](const auto& entry) { return entry.second.first.expired(); });
    const auto found = made->find({comm.get(), device});
    if (found != made->end() && found->second.second->usable()) known = found->second.second;
  }
  const std::vector<char> all = ask_all(*comm, static_cast<char>(known == nullptr ? 0 : 1));
  if (std::ranges::find(all, 0) == all.end()) return known;
  auto own = std::make_shared<NcclCommunicator>(*comm, device, timeout);
  const std::scoped_lock lock(mutex);
  (*made)[{comm.get(), device}] = {comm, own};
  return own;
}

NcclCommunicator::NcclCommunicator(Communicator& comm, int device, std::chrono::duration<double> timeout)
    : rank_(comm.rank()), size_(comm.size()), device_(device), timeout_(timeout) {
  UniqueId id{};
  on_all(comm, [&] {
    if (!library().problem.empty()) throw std::runtime_error(library().problem);
    set_device(device_);
    if (rank_ != 0) return;
    if (const int code = library().get_unique_id(&id); code != kSuccess) {
      throw std::runtime_error(text_of("ncclGetUniqueId", code));
    }
  });
  comm.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
  try {
    on_all(comm, [&] {
      Config config;
      const int code = library().init_rank_config(&comm_, size_, id, rank_, &config);
      if (code != kSuccess && code != kInProgress) throw std::runtime_error(text_of("ncclCommInitRankConfig", code));
      wait_until_ready();
    });
  } catch (...) {
    end("it could not be made");
    throw;
  }
  watcher_ = std::thread([this] { look_after(); });
}

NcclCommunicator::~NcclCommunicator() {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = true;
    end("it was closed");
  }
  changed_.notify_all();
  watcher_.join();
}

void NcclCommunicator::wait_until_ready() {
  const auto deadline = std::chrono::steady_clock::now() + clock_time(timeout_);
  while (true) {
    int state = kSuccess;
    const int code = library().get_async_error(comm_, &state);
    if (code != kSuccess) throw std::runtime_error(text_of("ncclCommGetAsyncError", code));
    if (state == kSuccess) return;
    if (state != kInProgress) throw std::runtime_error(text_of("NCCL", state));
    if (std::chrono::steady_clock::now() > deadline) {
      throw std::runtime_error("NCCL was not ready after " + std::to_string(timeout_.count()) + " s");
    }
    std::this_thread::yield();
  }
}

void NcclCommunicator::end(const std::string& why) {
  if (comm_ != nullptr) library().abort(comm_);
  comm_ = nullptr;
  if (ended_.empty()) ended_ = why;
}

void NcclCommunicator::check_locked() const {
  if (comm_ == nullptr) {
    throw CommunicationError("rank " + std::to_string(rank_) + " cannot use NCCL any more: " + ended_);
  }
}

void NcclCommunicator::check() {
  const std::scoped_lock lock(mutex_);
  check_locked();
}

template <class Call>
void NcclCommunicator::run(Call&& call) {
  const std::scoped_lock lock(mutex_);
  check_locked();
  try {
    const int code = call();
    if (code != kSuccess && code != kInProgress) throw std::runtime_error(text_of("NCCL", code));
    wait_until_ready();
  } catch (const std::exception& error) {
    end(error.what());
    throw CommunicationError("rank " + std::to_string(rank_) + ": " + error.what());
  }
}

void NcclCommunicator::allreduce(void* data, std::int64_t numel, DType dtype, cudaStream_t stream) {
  run([&] {
    return library().all_reduce(data, data, static_cast<std::size_t>(numel), type_of(dtype), kSum, comm_, stream);
  });
}

void NcclCommunicator::allgather(std::byte* data, std::size_t bytes, cudaStream_t stream) {
  run([&] {
    const std::byte* const own = data + static_cast<std::size_t>(rank_) * bytes;
    return library().all_gather(own, data, bytes, kInt8, comm_, stream);
  });
}

void NcclCommunicator::forget(const Event& last) {
  const std::scoped_lock lock(mutex_);
  if (last_ == &last) last_ = nullptr;
}

bool NcclCommunicator::usable() {
  const std::scoped_lock lock(mutex_);
  return comm_ != nullptr;
}

void NcclCommunicator::watch(const Event& last) {
  {
    const std::scoped_lock lock(mutex_);
    last_ = &last;
    since_ = std::chrono::steady_clock::now();
  }
  changed_.notify_all();
}

void NcclCommunicator::look_after() {
  cudaSetDevice(device_);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return closing_ || last_ != nullptr; });
    if (closing_) return;
    int state = kSuccess;
    if (last_->has_come()) {
      last_ = nullptr;
    } else if (comm_ != nullptr && library().get_async_error(comm_, &state) == kSuccess && state != kSuccess &&
               state != kInProgress) {
      end(text_of("NCCL", state));
    } else if (std::chrono::steady_clock::now() - since_ > clock_time(timeout_)) {
      end("the ranks did not end an exchange within " + std::to_string(timeout_.count()) + " s: one of them has died?");
      last_ = nullptr;
    } else {
      changed_.wait_for(lock, std::chrono::milliseconds(50));
    }
  }
}

}  // namespace fastseq::cuda
