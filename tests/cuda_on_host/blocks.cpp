// Kernels: the threads of a block are fibers.
#include <cuda_runtime.h>
#include <setjmp.h>  // NOLINT(modernize-deprecated-headers): <csetjmp> has no _setjmp
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "device.h"
#include "sanitizers.h"

thread_local uint3 threadIdx;
thread_local uint3 blockIdx;
thread_local dim3 blockDim;
thread_local dim3 gridDim;

// Jumps are faster than swapcontext, which asks the kernel for signals' masks, but sanitizers want to know of switches.
#if !defined(CUDA_ON_HOST_ASAN) && !defined(CUDA_ON_HOST_TSAN)
#define JUMPS
#endif

namespace cuda_on_host {

namespace {

constexpr std::size_t kStack = 128 * 1024;
constexpr unsigned kWarp = 32;

enum class State : char { kReady, kAtBlock, kAtWarp, kDone };

// Stacks are used again: a launch has hundreds.
class Stack {
 public:
  Stack() {
    const std::scoped_lock lock(mutex());
    if (unused().empty()) {
      memory_.reset(new char[kStack]);
    } else {
      memory_ = std::move(unused().back());
      unused().pop_back();
    }
#ifdef CUDA_ON_HOST_ASAN
    __asan_unpoison_memory_region(memory_.get(), kStack);
#endif
  }
  ~Stack() {
    const std::scoped_lock lock(mutex());
    unused().push_back(std::move(memory_));
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* get() const { return memory_.get(); }

 private:
  static std::vector<std::unique_ptr<char[]>>& unused() {
    static std::vector<std::unique_ptr<char[]>> all;
    return all;
  }
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  std::unique_ptr<char[]> memory_;
};

struct Fiber {
  ucontext_t context{};
  Stack stack;
#ifdef JUMPS
  bool begun = false;
  jmp_buf place;
#endif
  State state = State::kDone;
  unsigned index = 0;
  unsigned mask = 0;  // lanes that meet at the warp's barrier
  std::source_location at;
  const void* mine = nullptr;  // what it gives to the other lanes, and where theirs go
  void* all = nullptr;
  std::size_t bytes = 0;
#ifdef CUDA_ON_HOST_TSAN
  void* tsan = __tsan_create_fiber(0);
#endif
};

class Block;
thread_local Block* t_block = nullptr;

class Block {
 public:
  Block(const std::function<void()>& body, dim3 grid, dim3 block, std::size_t shared_bytes)
      : body_(body),
        grid_(grid),
        block_(block),
        fibers_(std::size_t{block.x} * block.y * block.z),
        rng_(draw_seed()),
        shared_(static_cast<std::byte*>(std::aligned_alloc(128, (shared_bytes + 255) / 128 * 128))),
        shared_bytes_(shared_bytes) {}
  ~Block() {
#ifdef CUDA_ON_HOST_TSAN
    for (Fiber& fiber : fibers_) __tsan_destroy_fiber(fiber.tsan);
#endif
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void run(uint3 index) {
    t_block = this;
    index_ = index;
    std::fill_n(shared_.get(), shared_bytes_, std::byte{0xa5});
    release(this);
    std::vector<unsigned> order(fibers_.size());
    for (unsigned i = 0; i < fibers_.size(); ++i) {
      prepare(fibers_[i], i);
      order[i] = i;
    }
    while (true) {
      std::shuffle(order.begin(), order.end(), rng_);
      bool ran = false;
      for (const unsigned i : order) {
        if (fibers_[i].state != State::kReady) continue;
        resume(fibers_[i]);
        ran = true;
      }
      if (ran) continue;
      if (std::ranges::all_of(fibers_, [](const Fiber& f) { return f.state == State::kDone; })) break;
      if (!pass_barriers()) fail("a block's threads wait at barriers that not all of them reach: " + where());
    }
    acquire(this);
    t_block = nullptr;
  }

  void wait(State state, unsigned mask, const std::source_location& at) {
    Fiber& fiber = *current_;
    fiber.state = state;
    fiber.mask = mask;
    fiber.at = at;
    // __syncthreads and __syncwarp order memory, shuffles do not.
    char* const token = state == State::kAtBlock ? &barrier_ : (fiber.mine == nullptr ? &warp_ : nullptr);
    if (token != nullptr) release(token);
    leave(fiber, false);
    if (token != nullptr) acquire(token);
  }
  Fiber& current() { return *current_; }
  std::byte* shared() { return shared_.get(); }

 private:
  static void enter() {
    Block& block = *t_block;
    block.arrive();
    acquire(&block);
    block.body_();
    release(&block);
    block.current_->state = State::kDone;
    block.leave(*block.current_, true);
  }

  static void prepare(Fiber& fiber, unsigned index) {
    fiber.index = index;
    fiber.state = State::kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
#ifdef JUMPS
    fiber.begun = false;
#endif
  }

  void switch_to(Fiber& fiber) {
#ifdef JUMPS
    if (_setjmp(main_place_) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
#else
    swapcontext(&main_, &fiber.context);
#endif
  }
  void switch_back(Fiber& fiber) {
#ifdef JUMPS
    if (_setjmp(fiber.place) == 0) _longjmp(main_place_, 1);
#else
    swapcontext(&fiber.context, &main_);
#endif
  }

  void resume(Fiber& fiber) {
    current_ = &fiber;
    threadIdx = {fiber.index % block_.x, fiber.index / block_.x % block_.y, fiber.index / (block_.x * block_.y)};
    blockIdx = index_;
    blockDim = block_;
    gridDim = grid_;
#ifdef CUDA_ON_HOST_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
#ifdef CUDA_ON_HOST_TSAN
    main_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber.tsan, kUnordered);
#endif
    switch_to(fiber);
#ifdef CUDA_ON_HOST_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void arrive() {
#ifdef CUDA_ON_HOST_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom_, &main_size_);
#endif
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool ends) {
#ifdef CUDA_ON_HOST_ASAN
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(ends ? nullptr : &fake, main_bottom_, main_size_);
#endif
#ifdef CUDA_ON_HOST_TSAN
    __tsan_switch_to_fiber(main_tsan_, kUnordered);
#endif
    switch_back(fiber);
#ifdef CUDA_ON_HOST_ASAN
    __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
#endif
  }

  // Lets those go on who wait at barriers that all have reached; false: none.
  bool pass_barriers() {
    bool passed = false;
    for (unsigned first = 0; first < fibers_.size(); first += kWarp) passed |= pass_warp(first);
    if (passed) return true;
    const Fiber* one = nullptr;
    for (const Fiber& fiber : fibers_) {
      if (fiber.state == State::kAtWarp) return false;
      if (fiber.state != State::kAtBlock) continue;  // who has ended is not waited for
      if (one != nullptr && (one->at.line() != fiber.at.line() || one->at.column() != fiber.at.column())) {
        fail("threads of a block meet at different barriers: " + where());
      }
      one = &fiber;
    }
    for (Fiber& fiber : fibers_) {
      if (fiber.state == State::kAtBlock) fiber.state = State::kReady;
    }
    return true;
  }

  bool pass_warp(unsigned first) {
    const unsigned count = std::min<unsigned>(kWarp, static_cast<unsigned>(fibers_.size()) - first);
    bool passed = false;
    for (unsigned lane = 0; lane < count; ++lane) {
      const Fiber& fiber = fibers_[first + lane];
      if (fiber.state != State::kAtWarp || !all_at(fiber, first, count)) continue;
      trade(fiber.mask, first, count);
      passed = true;
    }
    return passed;
  }

  // Whether all lanes of a fiber's mask wait with it.
  bool all_at(const Fiber& fiber, unsigned first, unsigned count) {
    bool all = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (((fiber.mask >> lane) & 1U) == 0) continue;
      if (lane >= count) fail("a warp's mask names lanes that do not exist: " + where());
      const Fiber& other = fibers_[first + lane];
      if (other.state == State::kDone) fail("a warp's mask names a lane that has ended: " + where());
      all = all && other.state == State::kAtWarp && other.mask == fiber.mask && other.at.line() == fiber.at.line();
    }
    return all;
  }

  // Gives each lane of a mask the values of all, and lets them go on.
  void trade(unsigned mask, unsigned first, unsigned count) {
    for (unsigned to = 0; to < count; ++to) {
      if (((mask >> to) & 1U) == 0) continue;
      const Fiber& receiver = fibers_[first + to];
      for (unsigned from = 0; from < count && receiver.all != nullptr; ++from) {
        if (((mask >> from) & 1U) == 0) continue;
        // Byte by byte: thread sanitizer sees calls of memcpy.
        const auto* source = static_cast<const volatile char*>(fibers_[first + from].mine);
        auto* target = static_cast<volatile char*>(receiver.all) + from * receiver.bytes;
        for (std::size_t b = 0; b < receiver.bytes; ++b) target[b] = source[b];
      }
    }
    for (unsigned to = 0; to < count; ++to) {
      if (((mask >> to) & 1U) != 0) fibers_[first + to].state = State::kReady;
    }
  }

  std::string where() const {
    std::map<std::string, int> counts;
    for (const Fiber& f : fibers_) {
      const bool done = f.state == State::kDone;
      ++counts[done ? "the end" : std::string(f.at.file_name()) + ":" + std::to_string(f.at.line())];
    }
    std::string text;
    for (const auto& [place, count] : counts) text += std::to_string(count) + " at " + place + "; ";
    return text;
  }

  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  const std::function<void()>& body_;
  dim3 grid_;
  dim3 block_;
  std::vector<Fiber> fibers_;
  std::mt19937_64 rng_;
  std::unique_ptr<std::byte, Free> shared_;
  std::size_t shared_bytes_;
  uint3 index_{};
  Fiber* current_ = nullptr;
#ifdef JUMPS
  jmp_buf main_place_;
#else
  ucontext_t main_{};
#endif
  char barrier_ = 0;  // what the barriers order
  char warp_ = 0;
#ifdef CUDA_ON_HOST_TSAN
  void* main_tsan_ = nullptr;
#endif
#ifdef CUDA_ON_HOST_ASAN
  const void* main_bottom_ = nullptr;
  std::size_t main_size_ = 0;
#endif
};

}  // namespace

void run_grid(const std::function<void()>& body, dim3 grid, dim3 block, std::size_t shared_bytes) {
  const std::uint64_t count = std::uint64_t{grid.x} * grid.y * grid.z;
  std::vector<std::uint64_t> order(count);
  for (std::uint64_t i = 0; i < count; ++i) order[i] = i;
  std::mt19937_64 rng(draw_seed());
  std::shuffle(order.begin(), order.end(), rng);
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    Block runner(body, grid, block, shared_bytes);
    while (true) {
      const std::size_t at = next.fetch_add(1, std::memory_order_relaxed);
      if (at >= count) return;
      const std::uint64_t i = order[at];
      const std::uint64_t rest = i / grid.x;
      runner.run({static_cast<unsigned>(i % grid.x), static_cast<unsigned>(rest % grid.y),
                  static_cast<unsigned>(rest / grid.y)});
    }
  };
  std::vector<std::thread> workers;  // new ones, in which __shared__ variables hold nothing from another launch
  for (std::uint64_t w = 0; w < std::min<std::uint64_t>(2, count); ++w) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
}

void sync_threads(const std::source_location& at) { t_block->wait(State::kAtBlock, 0, at); }
void sync_warp(unsigned mask, const std::source_location& at) { t_block->wait(State::kAtWarp, mask, at); }
void exchange(unsigned mask, const void* mine, std::size_t bytes, void* all, const std::source_location& at) {
  Fiber& fiber = t_block->current();
  fiber.mine = mine;
  fiber.all = all;
  fiber.bytes = bytes;
  t_block->wait(State::kAtWarp, mask, at);
  fiber.mine = nullptr;
  fiber.all = nullptr;
}
void* dynamic_shared() { return t_block->shared(); }
unsigned lane() { return t_block->current().index % kWarp; }

}  // namespace cuda_on_host
