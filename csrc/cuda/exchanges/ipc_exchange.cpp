#include "cuda/exchanges/ipc_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include "core/ranks/agreement.h"
#include "core/ranks/shared_memory.h"
#include "core/ranks/weighted_sum.h"
#include "cuda/exchanges/ask_all.h"

namespace fastseq::cuda {

namespace {

constexpr std::chrono::duration<double> kMostPatience{10};

// Memory that another rank may still have mapped must not be freed: it stays here until all have closed it.
class Exported {
 public:
  using AllClosed = std::function<bool()>;

  static void keep(std::shared_ptr<std::byte> memory, AllClosed all_closed) {
    const std::scoped_lock lock(mutex());
    list().emplace_back(std::move(memory), std::move(all_closed));
  }
  static void free_closed() {
    const std::scoped_lock lock(mutex());
    std::erase_if(list(), [](const auto& entry) { return entry.second(); });
  }

 private:
  // Never destroyed: at the end of the process CUDA may be gone.
  static std::vector<std::pair<std::shared_ptr<std::byte>, AllClosed>>& list() {
    static auto* const list = new std::vector<std::pair<std::shared_ptr<std::byte>, AllClosed>>;
    return *list;
  }
  static std::mutex& mutex() {
    static auto* const mutex = new std::mutex;
    return *mutex;
  }
};

}  // namespace

IpcExchange::IpcExchange(std::shared_ptr<Communicator> comm, int device, bool norm,
                         std::chrono::duration<double> timeout)
    : StreamedExchange(std::move(comm), device, norm), timeout_(std::min(timeout, kMostPatience)) {
  Exported::free_closed();
  share_progress();
  allocate(sizeof(News));
  summed_ = share_event();
  told_ = share_event();
}

IpcExchange::~IpcExchange() {
  for (const Buffer& buffer : buffers_) {
    for (std::byte* const memory : buffer.of) {
      if (memory != buffer.own.get()) cudaIpcCloseMemHandle(memory);
    }
  }
  progress_[static_cast<std::size_t>(rank())].closed = true;
  for (Buffer& buffer : buffers_) {
    Exported::keep(std::move(buffer.own), [shared = shared_, progress = progress_] {
      return std::ranges::all_of(progress, [](const Progress& rank) { return rank.closed.load(); });
    });
  }
  Exported::free_closed();
}

void IpcExchange::share_progress() {
  struct Place {
    int process;
    int descriptor;
  };
  const std::size_t bytes = static_cast<std::size_t>(size()) * sizeof(Progress);
  std::optional<SharedMemory> mine;
  if (rank() == 0) mine = SharedMemory::create(bytes);
  const Place place = ask_all(*comm(), Place{getpid(), mine ? mine->descriptor() : -1}).front();
  const auto opened = rank() == 0 ? mine : SharedMemory::open(place.process, place.descriptor, bytes);
  on_all(*comm(), [&] {
    if (!opened) throw std::runtime_error("the ranks cannot share memory of the host");
  });
  if (mine) mine->close_descriptor();
  shared_ = opened->mapping();
  progress_ = {reinterpret_cast<Progress*>(shared_.get()), static_cast<std::size_t>(size())};
}

std::shared_ptr<std::byte> IpcExchange::allocate(std::size_t bytes) {
  Buffer buffer{.own = nullptr, .bytes = bytes, .of = {}};
  cudaIpcMemHandle_t own{};
  on_all(*comm(), [&] {
    buffer.own = device_memory(std::max<std::size_t>(bytes, 1));
    check(cudaIpcGetMemHandle(&own, buffer.own.get()), "cudaIpcGetMemHandle");
  });
  const auto handles = ask_all(*comm(), own);
  on_all(*comm(), [&] {
    for (int r = 0; r < size(); ++r) {
      void* memory = buffer.own.get();
      if (r != rank()) {
        check(cudaIpcOpenMemHandle(&memory, handles[static_cast<std::size_t>(r)], cudaIpcMemLazyEnablePeerAccess),
              "cudaIpcOpenMemHandle");
      }
      buffer.of.push_back(static_cast<std::byte*>(memory));
    }
  });
  return buffers_.emplace_back(std::move(buffer)).own;
}

IpcExchange::Events IpcExchange::share_event() {
  Events events;
  cudaIpcEventHandle_t own{};
  on_all(*comm(), [&] {
    events.own = std::make_unique<Event>(cudaEventDisableTiming | cudaEventInterprocess);
    own = events.own->handle();
  });
  const auto handles = ask_all(*comm(), own);
  on_all(*comm(), [&] {
    for (int r = 0; r < size(); ++r) {
      events.of.push_back(r == rank() ? nullptr : std::make_unique<Event>(handles[static_cast<std::size_t>(r)]));
    }
  });
  return events;
}

void IpcExchange::prepare(std::span<const DeviceBucket> buckets, const double* facts) {
  StreamedExchange::prepare(buckets, facts);
  for (std::size_t b = 0; b < buckets.size(); ++b) packed_.push_back(share_event());
}

void IpcExchange::gathered(std::size_t bucket, cudaStream_t packs) {
  StreamedExchange::gathered(bucket, packs);
  packed_[bucket].own->record(packs);
}

void IpcExchange::wait_for(const Events& events) {
  for (const auto& event : events.of) (event == nullptr ? *events.own : *event).precede(stream());
}

std::vector<void*> IpcExchange::peers_of(const DeviceBucket& bucket) const {
  const auto holds = [&](const Buffer& b) {
    return bucket.data >= b.own.get() && bucket.data <= b.own.get() + b.bytes;
  };
  const Buffer& buffer = *std::ranges::find_if(buffers_.begin() + 1, buffers_.end(), holds);
  std::vector<void*> found;
  for (std::byte* const memory : buffer.of) found.push_back(memory + (bucket.data - buffer.own.get()));
  return found;
}

void IpcExchange::sum(std::size_t index) {
  const DeviceBucket& own = bucket(index);
  wait_for(packed_[index]);
  const Slice part = slice_of(own.numel, own.dtype, rank(), size());
  std::vector<void*> parts = peers_of(own);
  for (void*& peer : parts) {
    peer = static_cast<std::byte*>(peer) + static_cast<std::size_t>(part.begin) * item_size(own.dtype);
  }
  const std::vector<const void*> sources(parts.begin(), parts.end());
  weighted_sum(sources, factors(), part.end - part.begin, own.dtype, parts, squares(index), stream());
  summed_.own->record(stream());
  ++progress_[static_cast<std::size_t>(rank())].sums;
}

News* IpcExchange::own_news() { return reinterpret_cast<News*>(buffers_.front().own.get()); }

void IpcExchange::collect() {
  told_.own->record(stream());
  comm()->barrier();  // now all have recorded it
  wait_for(told_);
  for (int r = 0; r < size(); ++r) {
    copy(news() + r, buffers_.front().of[static_cast<std::size_t>(r)], sizeof(News), cudaMemcpyDeviceToDevice,
         stream());
  }
  finished_ = progress_[static_cast<std::size_t>(rank())].sums;
}

bool IpcExchange::settle() {
  const auto deadline = std::chrono::steady_clock::now() + clock_time(timeout_);
  const auto comes = [&](const auto& what) {
    while (!what() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return what();
  };
  if (!comes([&] { return last().has_come(); })) return false;
  const std::int64_t sums = progress_[static_cast<std::size_t>(rank())].sums;
  if (sums == finished_) return true;
  // An update did not end: what all agreed on, the others do, too, with this rank's memory.
  for (std::size_t r = 0; r < progress_.size(); ++r) {
    if (summed_.of[r] == nullptr) continue;
    if (!comes([&] { return progress_[r].sums >= sums && summed_.of[r]->has_come(); })) return false;
  }
  return true;
}

}  // namespace fastseq::cuda
