#include "core/slab_reader.h"

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

namespace fastseq {

namespace {

// One thread reads from the page cache at a third to a half of memcpy's rate.
constexpr unsigned kThreads = 2;

struct Request {
  std::vector<SlabRead> reads;
  std::vector<std::vector<const Source*>> sources;  // of each piece of each read
  struct File {
    const SourceFile* file;
    std::size_t read;  // the first that uses it
  };
  std::vector<File> files;  // each once
  std::vector<std::int64_t> counts;
  std::exception_ptr error;
  bool done = false;
};

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("piece: " + what); }

// a * b + c, small enough for sums of some of them.
std::int64_t extent(std::int64_t a, std::int64_t b, std::int64_t c) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 60;
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || __builtin_add_overflow(result, c, &result) || result >= kLimit ||
      result <= -kLimit) {
    refuse("its extent overflows");
  }
  return result;
}

void check_piece(const Piece& piece, const SlabRead& read, bool in_file) {
  if (piece.steps < 0 || piece.numel < 0) refuse("steps and numel must not be negative");
  if (piece.steps == 0 || piece.numel == 0) return;
  const std::int64_t row = extent(piece.numel, read.convert.from_size(), 0);
  extent(piece.steps, row, 0);
  const std::int64_t last = extent(piece.steps - 1, piece.step_bytes, extent(1, piece.offset, row));
  if (in_file && (piece.offset < 0 || last < row)) refuse("it begins before its file");
  const std::int64_t to = extent(1, piece.to, 0);
  const std::int64_t to_last = extent(piece.steps - 1, piece.to_step, to);
  if (std::min(to, to_last) < 0 || std::max(to, to_last) + piece.numel > read.numel) {
    refuse("rows of " + std::to_string(piece.numel) + " elements at " + std::to_string(to) + " to " +
           std::to_string(to_last) + " do not fit into a buffer of " + std::to_string(read.numel));
  }
}

// A thread starts with the signals blocked that its creator blocks: Python handles them in its main thread. What a
// thread's own fault raises stays.
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

}  // namespace

struct SlabReader::State {
  std::deque<Source> sources;  // stay where they are when others are added
  std::int64_t submitted = 0;
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  pid_t process = 0;  // where the threads are

  std::mutex mutex;  // for what follows, and for setting `stop`
  std::condition_variable queued;
  std::condition_variable finished;
  std::deque<std::unique_ptr<Request>> requests;  // the oldest first
  std::size_t begun = 0;                          // of them

  bool forked() const { return process != 0 && process != ::getpid(); }

  // Starts a thread unless those that are there have nothing to do, or are enough. With the mutex held.
  void start_thread() {
    static const std::size_t limit = std::min(std::max(std::thread::hardware_concurrency(), 1U), kThreads);
    if (threads.size() >= limit || (!threads.empty() && begun == requests.size())) return;
    const BlockedSignals blocked;
    threads.emplace_back([this, gatherer = Gatherer(stop)]() mutable { run(gatherer); });
    process = ::getpid();
    pthread_setname_np(threads.back().native_handle(), "fastseq-reader");
  }

  void run(Gatherer& gatherer) {
    std::unique_lock lock(mutex);
    while (true) {
      queued.wait(lock, [this] { return stop || begun < requests.size(); });
      if (stop) return;
      Request& request = *requests[begun];
      ++begun;
      lock.unlock();
      try {
        carry_out(request, gatherer);
      } catch (const Stopped&) {
        return;
      }
      lock.lock();
      request.done = true;
      finished.notify_all();
    }
  }

  static void carry_out(Request& request, Gatherer& gatherer) {
    std::size_t index = 0;
    try {
      for (; index < request.reads.size(); ++index) {
        request.counts[index] = gatherer.gather(request.reads[index], request.sources[index]);
      }
      for (const Request::File& used : request.files) {
        index = used.read;
        used.file->check_unchanged();
      }
    } catch (ReadError& error) {
      error.index = static_cast<std::int64_t>(index);
      request.error = std::current_exception();
    }
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
  auto request = std::make_unique<Request>();
  ++state.submitted;
  for (const SlabRead& read : reads) {
    std::vector<const Source*>& sources = request->sources.emplace_back();
    sources.reserve(read.pieces.size());
    for (const Piece& piece : read.pieces) {
      if (piece.source < 0 || static_cast<std::size_t>(piece.source) >= state.sources.size()) {
        refuse("there is no source " + std::to_string(piece.source));
      }
      Source& source = state.sources[static_cast<std::size_t>(piece.source)];
      check_piece(piece, read, source.file != nullptr);
      sources.push_back(&source);
      if (source.file && std::exchange(source.used, state.submitted) != state.submitted) {
        request->files.push_back({source.file.get(), request->sources.size() - 1});
      }
    }
  }
  request->counts.resize(reads.size());
  request->reads = std::move(reads);
  {
    const std::scoped_lock lock(state.mutex);
    state.start_thread();
    state.requests.push_back(std::move(request));
  }
  state.queued.notify_one();
}

std::optional<std::vector<std::int64_t>> SlabReader::wait(std::chrono::milliseconds limit) {
  State& state = usable();
  std::unique_ptr<Request> request;
  {
    std::unique_lock lock(state.mutex);
    if (state.requests.empty()) throw std::runtime_error("nothing was submitted that could be waited for");
    const bool ready = state.finished.wait_for(
        lock, limit, [&] { return state.stop || state.requests.empty() || state.requests.front()->done; });
    if (!ready) return std::nullopt;
    if (state.stop || state.requests.empty()) throw std::runtime_error("the reader was closed while it was waited for");
    request = std::move(state.requests.front());
    state.requests.pop_front();
    --state.begun;
  }
  if (request->error) std::rethrow_exception(request->error);
  return std::move(request->counts);
}

void SlabReader::close() {
  if (!state_) return;
  if (state_->forked()) {  // there are no threads to join, and the mutex may be locked for ever
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
  state_->sources.clear();
}

}  // namespace fastseq
