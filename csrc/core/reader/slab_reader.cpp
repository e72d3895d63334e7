#include "core/reader/slab_reader.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "core/base/platform.h"
#include "core/reader/gatherer.h"
#include "core/reader/read_parts.h"

namespace fastseq {

namespace {

// One thread reads from the page cache at a third to a half of memcpy's rate.
constexpr unsigned kThreads = 2;

// A waiting caller takes part in requests that cost at most this: milliseconds, as it must be able to give up.
constexpr std::int64_t kLight = 64 * kPartCost;

struct Request {
  std::deque<Job> jobs;  // one per read; they must not move
  struct File {
    const SourceFile* file;
    std::size_t job;  // the first job that uses it
  };
  std::vector<File> files;  // each once
  std::vector<Part> parts;
  std::size_t taken = 0;  // parts taken
  std::size_t done = 0;
  std::int64_t cost = 0;
  std::exception_ptr error;
  bool finished = false;

  void fail(const std::exception_ptr& other) {
    if (!error) error = other;
  }
};

// Blocks signals, which new threads inherit: Python handles signals in its main thread. Signals that a thread's own
// fault raises stay unblocked.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t before_{};
};

// The error raised by fn(), for read number `job` of its request.
template <class Fn>
std::exception_ptr error_of(std::size_t job, Fn&& fn) {
  try {
    fn();
  } catch (ReadError& error) {
    error.index = static_cast<std::int64_t>(job);
    return std::current_exception();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace

struct SlabReader::State {
  std::deque<Source> sources;  // must not move when others are added
  std::int64_t submitted = 0;
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  pid_t process = 0;  // the process that made requests

  std::mutex waiting;  // held by a waiting caller, for its gatherer; locked before the other
  Gatherer gatherer{stop};

  std::mutex mutex;  // guards the members below, and setting `stop`
  std::condition_variable queued;
  std::condition_variable finished;
  std::deque<std::unique_ptr<Request>> requests;  // the oldest first
  std::size_t taken = 0;                          // requests whose parts are all taken
  bool cold = false;                              // whether the last request had to wait for the disk

  bool forked() const { return process != 0 && process != ::getpid(); }

  // Starts all threads if there is much work or work already, else one. Call it with the mutex held.
  void start_threads(bool much) {
    static const std::size_t limit = std::min(std::max(std::thread::hardware_concurrency(), 1U), kThreads);
    const std::size_t wanted = much || taken < requests.size() ? limit : 1;
    while (threads.size() < wanted) {
      const BlockedSignals blocked;
      threads.emplace_back([this, gatherer = Gatherer(stop)]() mutable { run(gatherer); });
#if FASTSEQ_HAS_THREAD_NAMES
      pthread_setname_np(threads.back().native_handle(), "fastseq-reader");
#endif
    }
  }

  // All threads work on the oldest request.
  void run(Gatherer& gatherer) {
    std::unique_lock lock(mutex);
    while (true) {
      queued.wait(lock, [this] { return stop || taken < requests.size(); });
      if (stop) return;
      do_part(lock, gatherer);
    }
  }

  // Takes the next part of the oldest request that has one left, and reads it without the lock.
  void do_part(std::unique_lock<std::mutex>& lock, Gatherer& gatherer) {
    Request& request = *requests[taken];
    const Part part = request.parts[request.taken];
    if (++request.taken == request.parts.size()) ++taken;
    std::int64_t count = 0;
    std::exception_ptr error = request.error;
    if (!error) {
      lock.unlock();
      error = error_of(part.job, [&] { count = gatherer.gather(request.jobs[part.job], part); });
      lock.lock();
    }
    request.jobs[part.job].count += count;
    request.fail(error);
    if (++request.done < request.parts.size()) return;
    for (const Request::File& used : request.files) {
      if (request.error) break;
      lock.unlock();
      error = error_of(used.job, [&] { used.file->check_unchanged(); });
      lock.lock();
      request.fail(error);
    }
    cold = std::ranges::any_of(request.jobs, [](const Job& job) { return job.told.load(); });
    request.finished = true;
    finished.notify_all();
  }
};

SlabReader::SlabReader() : state_(new State) {}

SlabReader::~SlabReader() { close(); }

SlabReader::State& SlabReader::usable() const {
  if (!state_ || state_->stop) throw std::runtime_error("the reader was closed");
  if (state_->forked()) throw std::runtime_error("the reader belongs to the process that this one was forked from");
  return *state_;
}

std::int64_t SlabReader::add_file(const std::string& path, bool strict) {
  State& state = usable();
  state.sources.push_back({.file = std::make_unique<SourceFile>(path, strict)});
  return static_cast<std::int64_t>(state.sources.size()) - 1;
}

std::int64_t SlabReader::add_memory(std::uintptr_t address) {
  State& state = usable();
  state.sources.push_back({.file = nullptr, .address = address});
  return static_cast<std::int64_t>(state.sources.size()) - 1;
}

void SlabReader::submit(std::vector<SlabRead> reads) {
  State& state = usable();
  if (reads.empty()) throw std::invalid_argument("a request needs at least one read");
  auto request = std::make_unique<Request>();
  ++state.submitted;
  for (SlabRead& read : reads) {
    const std::size_t number = request->jobs.size();
    bool in_files = false;
    check_size(read);
    for (Piece& piece : read.pieces) {
      if (piece.source < 0 || static_cast<std::size_t>(piece.source) >= state.sources.size()) {
        throw std::invalid_argument("piece: there is no source " + std::to_string(piece.source));
      }
      Source& source = state.sources[static_cast<std::size_t>(piece.source)];
      check_piece(piece, read, source.file != nullptr);
      in_files |= source.file != nullptr;
      if (source.file && std::exchange(source.used, state.submitted) != state.submitted) {
        request->files.push_back({source.file.get(), number});
      }
    }
    request->cost = std::min(request->cost + add_parts(request->parts, number, read, in_files), kMostCost);
    Job& job = request->jobs.emplace_back(std::move(read));
    job.sources.reserve(job.read.pieces.size());
    for (const Piece& piece : job.read.pieces) {
      job.sources.push_back(&state.sources[static_cast<std::size_t>(piece.source)]);
    }
  }
  state.process = ::getpid();
  const bool much = request->cost >= kPartCost;
  bool wake = false;
  {
    const std::scoped_lock lock(state.mutex);
    wake = much || state.cold;
    if (wake) state.start_threads(much);
    state.requests.push_back(std::move(request));
  }
  if (wake) state.queued.notify_all();
}

std::optional<std::vector<std::int64_t>> SlabReader::wait(std::chrono::milliseconds limit) {
  State& state = usable();
  const auto until = std::chrono::steady_clock::now() + limit;
  std::unique_ptr<Request> request;
  {
    const std::scoped_lock alone(state.waiting);
    std::unique_lock lock(state.mutex);
    if (state.requests.empty()) throw std::runtime_error("there is no pending request to wait for");
    if (!state.stop && state.requests.front()->cost <= kLight) {
      while (!state.stop && state.taken == 0) state.do_part(lock, state.gatherer);
    }
    const bool ready = state.finished.wait_until(
        lock, until, [&] { return state.stop || state.requests.empty() || state.requests.front()->finished; });
    if (!ready) return std::nullopt;
    if (state.stop || state.requests.empty()) throw std::runtime_error("the reader was closed during the wait");
    request = std::move(state.requests.front());
    state.requests.pop_front();
    --state.taken;
  }
  if (request->error) std::rethrow_exception(request->error);
  std::vector<std::int64_t> counts;
  counts.reserve(request->jobs.size());
  for (const Job& job : request->jobs) counts.push_back(job.count);
  return counts;
}

void SlabReader::close() {
  if (!state_) return;
  if (state_->forked()) {  // no threads to join, and the mutex may be locked forever
    state_->sources.clear();
    [[maybe_unused]] const State* left = state_.release();
    return;
  }
  {
    const std::scoped_lock lock(state_->mutex);
    state_->stop = true;
  }
  state_->queued.notify_all();
  state_->finished.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
  state_->threads.clear();
  const std::scoped_lock alone(state_->waiting);  // no caller is reading any more
  state_->sources.clear();
}

}  // namespace fastseq
