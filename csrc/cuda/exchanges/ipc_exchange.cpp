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
#include "core/ranks/single_process.h"
#include "cuda/exchanges/ask_all.h"

namespace fastseq::cuda {

namespace {

constexpr std::chrono::duration<double> kMostPatience{30};

// Memory and events that another rank may still use must not be freed: they stay here until all have closed them.
class Exported {
 public:
  using AllClosed = std::function<bool()>;

  static void keep(std::shared_ptr<void> exported, AllClosed all_closed) {
    const std::scoped_lock lock(mutex());
    list().emplace_back(std::move(exported), std::move(all_closed));
  }
  static void free_closed() {
    const std::scoped_lock lock(mutex());
    std::erase_if(list(), [](const auto& entry) { return entry.second(); });
  }

 private:
  // Never destroyed: at the end of the process CUDA may be gone.
  static std::vector<std::pair<std::shared_ptr<void>, AllClosed>>& list() {
    static auto* const list = new std::vector<std::pair<std::shared_ptr<void>, AllClosed>>;
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
    : StreamedExchange(std::move(comm), device, norm),
      timeout_(timeout),
      node_(this->comm()->node_ranks()),
      here_(static_cast<std::size_t>(std::ranges::find(node_, rank()) - node_.begin())),
      parts_(this->comm()->slices()),
      several_nodes_(parts_ != 0) {
  if (!several_nodes_) parts_ = static_cast<int>(node_.size());
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
  progress_[here_].closed = true;
  const auto all_closed = [shared = shared_, progress = progress_] {
    return std::ranges::all_of(progress, [](const Progress& rank) { return rank.closed.load(); });
  };
  for (Buffer& buffer : buffers_) Exported::keep(std::move(buffer.own), all_closed);
  packed_.push_back(std::move(summed_));
  packed_.push_back(std::move(told_));
  for (Events& events : packed_) Exported::keep(std::move(events.own), all_closed);
  Exported::free_closed();
}

void IpcExchange::share_progress() {
  struct Place {
    int process;
    int descriptor;
  };
  const std::size_t bytes = node_.size() * sizeof(Progress);
  std::optional<SharedMemory> mine;
  if (here_ == 0) mine = SharedMemory::create(bytes);
  const auto places = ask_all(*comm(), Place{getpid(), mine ? mine->descriptor() : -1});
  const Place& place = places[static_cast<std::size_t>(node_.front())];
  on_all(*comm(), [&] {
    const auto opened = here_ == 0 ? mine : SharedMemory::open(place.process, place.descriptor, bytes);
    if (!opened) throw std::runtime_error("the ranks cannot share memory of the host");
    shared_ = opened->mapping();
  });
  if (mine) mine->close_descriptor();
  progress_ = {reinterpret_cast<Progress*>(shared_.get()), node_.size()};
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
    for (const int r : node_) {
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
    for (const int r : node_) {
      events.of.push_back(r == rank() ? nullptr : std::make_unique<Event>(handles[static_cast<std::size_t>(r)]));
    }
  });
  return events;
}

void IpcExchange::prepare(std::span<const DeviceBucket> buckets, const double* facts) {
  StreamedExchange::prepare(buckets, facts);
  std::size_t most = 0;
  for (const DeviceBucket& bucket : buckets) {
    packed_.push_back(share_event());
    const Slice part = own_part(bucket);
    most = std::max(most, static_cast<std::size_t>(part.end - part.begin) * item_size(bucket.dtype));
  }
  if (!several_nodes_) return;
  // Behind the sums there is room for the news of all ranks.
  news_at_ = (most + alignof(News) - 1) / alignof(News) * alignof(News);
  const std::size_t bytes = news_at_ + static_cast<std::size_t>(size()) * sizeof(News);
  on_all(*comm(), [&] {
    staging_ = allocate_aligned(bytes);
    registered_ = std::make_unique<Registered>(staging_.get(), bytes);
  });
}

void IpcExchange::gathered(std::size_t bucket, cudaStream_t packs) {
  StreamedExchange::gathered(bucket, packs);
  packed_[bucket].own->record(packs);
}

void IpcExchange::wait_for(const Events& events) {
  for (const auto& event : events.of) (event == nullptr ? *events.own : *event).precede(stream());
}

Slice IpcExchange::own_part(const DeviceBucket& bucket) const {
  const int here = static_cast<int>(here_);
  return here < parts_ ? slice_of(bucket.numel, bucket.dtype, here, parts_) : Slice{0, 0};
}

Slice IpcExchange::part_of(const DeviceBucket& bucket) const {
  return node_.front() == 0 ? own_part(bucket) : Slice{0, 0};  // each node has them all
}

// A bucket's elements from `first` on, of all ranks of the node.
std::vector<void*> IpcExchange::peers_of(const DeviceBucket& bucket, std::int64_t first) const {
  const auto holds = [&](const Buffer& b) {
    return bucket.data >= b.own.get() && bucket.data <= b.own.get() + b.bytes;
  };
  const Buffer& buffer = *std::ranges::find_if(buffers_.begin() + 1, buffers_.end(), holds);
  const std::ptrdiff_t at = bucket.data - buffer.own.get() +
                            static_cast<std::ptrdiff_t>(first) * static_cast<std::ptrdiff_t>(item_size(bucket.dtype));
  std::vector<void*> found;
  found.reserve(buffer.of.size());
  for (std::byte* const memory : buffer.of) found.push_back(memory + at);
  return found;
}

void IpcExchange::sum(std::size_t index) {
  const DeviceBucket& own = bucket(index);
  wait_for(packed_[index]);
  const Slice part = own_part(own);
  const std::int64_t numel = part.end - part.begin;
  const std::vector<void*> peers = peers_of(own, part.begin);
  const std::vector<const void*> sources(peers.begin(), peers.end());
  std::vector<double> factors_here;
  factors_here.reserve(node_.size());
  for (const int r : node_) factors_here.push_back(factors()[static_cast<std::size_t>(r)]);
  if (!several_nodes_) {
    weighted_sum(sources, factors_here, numel, own.dtype, peers, squares(index), stream());
  } else if (std::cmp_less(here_, parts_)) {
    void* const mine = peers[here_];
    weighted_sum(sources, factors_here, numel, own.dtype, {{mine}}, nullptr, stream());
    sum_over_nodes(mine, numel, own.dtype);
    weighted_sum({{mine}}, {{1.0}}, numel, own.dtype, peers, squares(index), stream());
  }
  summed_.own->record(stream());
  ++progress_[here_].sums;
}

void IpcExchange::sum_over_nodes(void* data, std::int64_t numel, DType dtype) {
  const std::size_t bytes = static_cast<std::size_t>(numel) * item_size(dtype);
  copy(staging_.get(), data, bytes, cudaMemcpyDeviceToHost, stream());
  wait();
  comm()->sum_over_nodes(staging_.get(), numel, dtype);
  copy(data, staging_.get(), bytes, cudaMemcpyHostToDevice, stream());
}

void IpcExchange::wait() {
  Event now;
  now.record(stream());
  wait(now);
}

void IpcExchange::wait(const Event& event) const {
  const auto deadline = std::chrono::steady_clock::now() + clock_time(timeout_);
  while (!event.has_come()) {
    if (std::chrono::steady_clock::now() > deadline) {
      throw CommunicationError(timeout_message(rank(), timeout_.count(), "gradients of the ranks of its machine"));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

// Nobody else looks whether the device waits for a rank that has died.
void IpcExchange::raise_if_broken() { wait(last()); }

News* IpcExchange::own_news() { return reinterpret_cast<News*>(buffers_.front().own.get()); }

void IpcExchange::collect() {
  told_.own->record(stream());
  if (several_nodes_) {
    collect_over_nodes();
  } else {
    comm()->barrier();  // now all have recorded it
  }
  wait_for(told_);
  for (std::size_t r = 0; r < node_.size() && !several_nodes_; ++r) {
    copy(news() + r, buffers_.front().of[r], sizeof(News), cudaMemcpyDeviceToDevice, stream());
  }
  finished_ = progress_[here_].sums;
}

void IpcExchange::collect_over_nodes() {
  auto* const all = reinterpret_cast<News*>(staging_.get() + news_at_);
  const std::size_t bytes = static_cast<std::size_t>(size()) * sizeof(News);
  wait();  // those of the update before are on their way to the device
  std::fill_n(all, size(), News{});
  copy(all + rank(), own_news(), sizeof(News), cudaMemcpyDeviceToHost, stream());
  wait();
  comm()->allreduce(all, static_cast<std::int64_t>(bytes / sizeof(double)), DType::kFloat64, {.mean = false});
  copy(news(), all, bytes, cudaMemcpyHostToDevice, stream());
}

bool IpcExchange::settle() {
  const auto deadline = std::chrono::steady_clock::now() + clock_time(std::min(timeout_, kMostPatience));
  const auto comes = [&](const auto& what) {
    while (!what() && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    return what();
  };
  Event now;  // an update that failed may have left work behind `last`
  now.record(stream());
  if (!comes([&] { return now.has_come(); })) return false;
  const std::int64_t sums = progress_[here_].sums;
  if (sums == finished_) return true;
  // An update did not end: what all agreed on, the others do, too, with this rank's memory.
  for (std::size_t r = 0; r < progress_.size(); ++r) {
    if (summed_.of[r] == nullptr) continue;
    if (!comes([&] { return progress_[r].sums >= sums && summed_.of[r]->has_come(); })) return false;
  }
  return true;
}

}  // namespace fastseq::cuda
