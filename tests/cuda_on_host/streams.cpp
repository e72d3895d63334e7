// What streams run when somebody waits.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

namespace cuda_on_host {

namespace {

std::atomic<std::uint64_t> g_seed{1};
std::atomic<std::uint64_t> g_draws{0};

std::mutex g_mutex;                                           // of all below; free while an operation runs
std::vector<Stream*>& g_streams = *new std::vector<Stream*>;  // what streams still have at the end is no leak
std::mt19937_64 g_rng{1};
Policy g_policy = Policy::kRandom;
char g_gone;  // the token of streams that are no more

bool is_ready(const Operation& operation) {
  return (operation.awaits == nullptr || operation.awaits->passed) && (!operation.elsewhere || operation.elsewhere());
}

void push(Stream* stream, std::unique_ptr<Operation> operation) {
  release(&operation->token);
  const Quiet quiet;
  Stream* const to = or_default(stream);
  const std::scoped_lock lock(g_mutex);
  to->queue.push_back(std::move(operation));
}

// Deletes a stream that was destroyed, once it has nothing left.
void drop_if_done(Stream& stream) {
  if (!stream.destroyed || stream.busy || !stream.queue.empty()) return;
  std::erase(g_streams, &stream);
  stream.strand.run([] { release(&g_gone); });
  delete &stream;
}

// Runs the first operation of a stream.
void step(Stream& stream, std::unique_lock<std::mutex>& lock) {
  const std::unique_ptr<Operation> operation = std::move(stream.queue.front());
  stream.queue.pop_front();
  stream.busy = true;
  lock.unlock();
  stream.strand.run([&] {
    acquire(&operation->token);
    if (operation->awaits) acquire(operation->awaits.get());
    if (operation->run) {
      const DeviceAccess access;
      operation->run();
      operation->run = nullptr;  // what it holds is freed here, where it was used
    }
    if (operation->passes) release(operation->passes.get());
  });
  lock.lock();
  if (operation->passes) operation->passes->passed = true;
  stream.busy = false;
  drop_if_done(stream);
}

// The stream whose first operation must run so that a mark passes, or null.
Stream* needed(const Mark* mark, std::size_t depth = 0) {
  if (depth > g_streams.size()) fail("events wait for each other");
  for (Stream* const stream : g_streams) {
    for (const auto& operation : stream->queue) {
      if (operation->passes.get() != mark) continue;
      const auto& front = stream->queue.front();
      if (is_ready(*front)) return stream;
      return front->elsewhere ? nullptr : needed(front->awaits.get(), depth + 1);
    }
  }
  return nullptr;
}

// A stream that can run, or null.
Stream* draw() {
  std::vector<Stream*> able;
  for (Stream* const stream : g_streams) {
    if (!stream->busy && !stream->queue.empty() && is_ready(*stream->queue.front())) able.push_back(stream);
  }
  return able.empty() ? nullptr : able[g_rng() % able.size()];
}

// The stream to run next for a mark, or null: what is needed runs already.
Stream* choose(const Mark* mark) {
  if (g_policy == Policy::kLate) {
    Stream* const stream = needed(mark);
    return stream == nullptr || stream->busy ? nullptr : stream;
  }
  return draw();
}

// Whether something runs in another thread, or may go on by what another process does.
bool others_run() {
  return std::ranges::any_of(g_streams, [](const Stream* stream) {
    return stream->busy || (!stream->queue.empty() && stream->queue.front()->elsewhere);
  });
}

}  // namespace

void fail(const std::string& what) {
  std::fprintf(stderr, "CUDA on the host: %s\n", what.c_str());
  std::abort();
}

std::uint64_t draw_seed() {
  return g_seed.load(std::memory_order_relaxed) * 0x9e3779b97f4a7c15ULL +
         g_draws.fetch_add(1, std::memory_order_relaxed);
}

void seed(std::uint64_t seed) {
  const std::scoped_lock lock(g_mutex);
  g_seed = seed;
  g_rng.seed(seed);
}

Running::Running()
    : thread_([this] {
        const Quiet quiet;
        std::unique_lock lock(g_mutex);
        while (!ended_) {
          if (Stream* const stream = draw(); stream != nullptr) {
            step(*stream, lock);
          } else {
            lock.unlock();
            std::this_thread::sleep_for(std::chrono::microseconds(20));
            lock.lock();
          }
        }
      }) {}

Running::~Running() {
  ended_ = true;
  thread_.join();
}

void set_policy(Policy policy) {
  const std::scoped_lock lock(g_mutex);
  g_policy = policy;
}

Stream* or_default(Stream* stream) {
  static Stream* const ordinary = [] {
    auto* const made = new Stream;  // as long as the program
    add(made);
    return made;
  }();
  return stream == nullptr ? ordinary : stream;
}

void add(Stream* stream) {
  const Quiet quiet;
  const std::scoped_lock lock(g_mutex);
  g_streams.push_back(stream);
}

void remove(Stream* stream) {
  const Quiet quiet;
  const std::scoped_lock lock(g_mutex);
  stream->destroyed = true;
  drop_if_done(*stream);
}

void wait_for_all() {
  std::vector<std::shared_ptr<Mark>> marks;
  or_default(nullptr);
  {
    const Quiet quiet;
    const std::scoped_lock lock(g_mutex);
    for (Stream* const stream : g_streams) {
      auto operation = std::make_unique<Operation>();
      operation->passes = marks.emplace_back(std::make_shared<Mark>());
      stream->queue.push_back(std::move(operation));
    }
  }
  for (const auto& mark : marks) wait_for(mark);
  acquire(&g_gone);
}

bool is_idle(Stream* stream) {
  const Quiet quiet;
  const Stream& own = *or_default(stream);
  const std::scoped_lock lock(g_mutex);
  return own.queue.empty() && !own.busy;
}

void push(Stream* stream, std::function<void()> run) {
  Stream& own = *or_default(stream);
  if (own.capture != nullptr) {
    auto& [nodes] = own.capture->graph;
    std::vector<std::size_t>& ends = own.capture->ends[&own];
    nodes.push_back({.run = std::move(run), .after = std::exchange(ends, {nodes.size()}), .token = 0});
    return;
  }
  auto operation = std::make_unique<Operation>();
  operation->run = std::move(run);
  push(stream, std::move(operation));
}

std::shared_ptr<Mark> push_mark(Stream* stream) {
  auto operation = std::make_unique<Operation>();
  operation->passes = std::make_shared<Mark>();
  auto mark = operation->passes;
  push(stream, std::move(operation));
  return mark;
}

void push_wait(Stream* stream, const std::shared_ptr<Mark>& mark) {
  auto operation = std::make_unique<Operation>();
  operation->awaits = mark;
  push(stream, std::move(operation));
}

void push_wait(Stream* stream, std::function<bool()> elsewhere) {
  auto operation = std::make_unique<Operation>();
  operation->elsewhere = std::move(elsewhere);
  push(stream, std::move(operation));
}

void wait_for(const std::shared_ptr<Mark>& mark) {
  {
    const Quiet quiet;
    std::unique_lock lock(g_mutex);
    while (!mark->passed) {
      Stream* const next = choose(mark.get());
      if (next != nullptr) {
        step(*next, lock);
        continue;
      }
      if (!others_run()) fail("nothing can run, but somebody waits");
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }
  acquire(mark.get());
}

bool has_passed(const std::shared_ptr<Mark>& mark) {
  {
    const Quiet quiet;
    std::unique_lock lock(g_mutex);
    if (!mark->passed) {
      Stream* const next = needed(mark.get());
      if (next != nullptr && !next->busy) step(*next, lock);
      if (!mark->passed) return false;
    }
  }
  acquire(mark.get());
  return true;
}

void Graph::run() {
  std::mt19937_64 rng(draw_seed());
  std::vector<char> done(nodes.size());
  char whole = 0;
  release(&whole);
  for (std::size_t left = nodes.size(); left > 0; --left) {
    std::vector<std::size_t> able;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const auto before = [&](std::size_t other) { return done[other] != 0; };
      if (done[i] == 0 && std::ranges::all_of(nodes[i].after, before)) able.push_back(i);
    }
    const std::size_t next = able[rng() % able.size()];
    Node& node = nodes[next];
    Strand strand;  // nodes that nothing orders may race
    strand.run([&] {
      acquire(&whole);
      for (const std::size_t other : node.after) acquire(&nodes[other].token);
      node.run();
      release(&node.token);
    });
    done[next] = 1;
  }
  for (Node& node : nodes) acquire(&node.token);
}

}  // namespace cuda_on_host
