#include "core/ranks/node_group.h"

#include <signal.h>  // NOLINT(modernize-deprecated-headers): <csignal> has no kill

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

#include "core/base/platform.h"

#if FASTSEQ_HAS_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/ranks/communicator.h"

namespace fastseq {

namespace {

// A rank spins for a millisecond or two before it sleeps: first without calls of the kernel, then yielding to others.
// Waking up takes as long as a small model's update. A clock ends the spinning, not a count: on a busy machine others
// may run for seconds meanwhile, and the deadline is checked only afterwards.
constexpr int kSpins = 2000;
constexpr auto kAwake = std::chrono::milliseconds(2);
constexpr auto kNap = std::chrono::milliseconds(50);  // checks the clock that often while asleep

// How long a rank that ends waits for the others to learn it in a call; they learn it from its slot, too.
constexpr std::chrono::duration<double> kLeaving = std::chrono::seconds(5);

// Epochs wrap around: e is at or after `epoch` if it is less than half the range ahead.
bool reached(std::uint32_t e, std::uint32_t epoch) { return static_cast<std::int32_t>(e - epoch) >= 0; }

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Other processes wait on these words too, which std::atomic::wait does not support.
void sleep_while_equal(std::atomic<std::uint32_t>& word, std::uint32_t value) {
#if FASTSEQ_HAS_FUTEX
  const timespec nap = {.tv_sec = 0, .tv_nsec = std::chrono::nanoseconds(kNap).count()};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &nap, nullptr, 0);
#else
  if (word.load() == value) std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

void wake_all(std::atomic<std::uint32_t>& word) {
#if FASTSEQ_HAS_FUTEX
  syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

}  // namespace

NodeGroup::NodeGroup(std::vector<Slot*> slots, int rank, std::chrono::duration<double> timeout,
                     std::uint32_t first_epoch)
    : slots_(std::move(slots)),
      rank_(rank),
      timeout_(timeout),
      epoch_(first_epoch),
      // With more ranks than cores, the missing rank may need the core of the waiting one.
      spins_(slots_.size() > std::max(1U, std::thread::hardware_concurrency()) ? 0 : kSpins) {}

void NodeGroup::meet(double number) {
  ++epoch_;
  Slot& slot = own();
  slot.numbers[epoch_ % 2] = number;
  // Sequentially consistent on both sides: either the sleeper sees the new epoch, or this rank sees it sleep. All other
  // pairs only release what was written before and acquire it, which is enough: data conflict only across a meeting.
  slot.arrived.store(epoch_);
  if (slot.sleepers.load() != 0) wake_all(slot.arrived);
  try {
    wait_for_all();
  } catch (...) {  // if not LostRanks: there is no memory for its text. Others may go on from here, without this rank
    break_up(current_cause(name(rank_), operation_).data());
    throw;
  }
}

void NodeGroup::wait_for_all() {
  std::chrono::steady_clock::time_point deadline{};
  for (int r = 0; r < size(); ++r) {
    if (r != rank_) wait_for(r, deadline);
  }
  raise_if_broken();
}

double NodeGroup::sum_of_numbers() const {
  double sum = 0;
  for (const Slot* slot : slots_) sum += slot->numbers[epoch_ % 2];
  return sum;
}

std::vector<Call> NodeGroup::exchange(const Call& call, std::span<const std::byte> small) {
  std::vector<Call> calls(slots_.size());
  const std::size_t parity = (epoch_ + 1) % 2;
  own().calls[parity] = call;
  std::ranges::copy(small, own().small[parity].begin());
  operation_ = call.operation;
  meet();
  for (std::size_t r = 0; r < calls.size(); ++r) calls[r] = slots_[r]->calls[parity];
  return calls;
}

const std::byte* NodeGroup::small_of(int r) const {
  return slots_[static_cast<std::size_t>(r)]->small[epoch_ % 2].data();
}

void NodeGroup::set_message(std::string_view message) {
  auto& text = own().message[(epoch_ + 1) % 2];
  text[message.copy(text.data(), text.size() - 1)] = '\0';
}

std::string NodeGroup::message_of(int r) const {
  return slots_[static_cast<std::size_t>(r)]->message[epoch_ % 2].data();
}

void NodeGroup::break_up(const char* cause) noexcept {
  Slot& slot = own();
  const std::scoped_lock lock(breaking_up_);  // a thread that aborts may come while another gives up
  if (broken_up()) return;
  std::snprintf(slot.cause.data(), slot.cause.size(), "%s", cause);
  slot.broken.store(1, std::memory_order_release);
  wake_all(slot.arrived);  // ranks that sleep on another word look here soon
}

bool NodeGroup::broken_up() const {
  return slots_[static_cast<std::size_t>(rank_)]->broken.load(std::memory_order_relaxed) != 0;
}

void NodeGroup::raise_if_broken() const {
  for (const Slot* slot : slots_) {
    if (slot->broken.load(std::memory_order_acquire) == 0) continue;
    throw lost_ranks(name(rank_), slot->cause.data());
  }
}

void NodeGroup::wait_for(int peer, std::chrono::steady_clock::time_point& deadline) {
  const Slot& slot = *slots_[static_cast<std::size_t>(peer)];
  for (int i = 0; i < spins_; ++i) {
    if (reached(slot.arrived.load(std::memory_order_acquire), epoch_)) return;
    relax();
  }
  const auto asleep = std::chrono::steady_clock::now() + kAwake;
  while (std::chrono::steady_clock::now() < asleep) {
    if (reached(slot.arrived.load(std::memory_order_acquire), epoch_)) return;
    std::this_thread::yield();
  }
  sleep_until_arrived(peer, deadline);
}

void NodeGroup::sleep_until_arrived(int peer, std::chrono::steady_clock::time_point& deadline) {
  struct Sleeper {
    explicit Sleeper(std::atomic<std::uint32_t>& counted) : count(counted) { count.fetch_add(1); }
    ~Sleeper() { count.fetch_sub(1); }
    std::atomic<std::uint32_t>& count;
  };
  if (deadline == std::chrono::steady_clock::time_point{}) {
    const auto patience = operation_ == Operation::kLeave ? std::min(timeout_, kLeaving) : timeout_;
    deadline = std::chrono::steady_clock::now() + clock_time(patience);
  }
  Slot& slot = *slots_[static_cast<std::size_t>(peer)];
  const Sleeper sleeper(slot.sleepers);
  while (true) {
    const bool ended = has_ended(peer);  // before this looks whether it has arrived
    const std::uint32_t seen = slot.arrived.load();
    if (reached(seen, epoch_)) return;
    if (interrupted_.load()) break_up(exit_message(name(rank_)).c_str());
    raise_if_broken();
    if (ended) give_up(exit_message(name(peer)));
    if (std::chrono::steady_clock::now() > deadline) {
      const std::string missing = missing_ranks();
      if (missing.empty()) return;
      give_up(timeout_message(name(rank_), timeout_.count(), missing));
    }
    if (idle_) idle_();
    sleep_while_equal(slot.arrived, seen);
  }
}

bool NodeGroup::has_ended(int peer) const {
  return !processes_.empty() && kill(processes_[static_cast<std::size_t>(peer)], 0) != 0 && errno == ESRCH;
}

std::string NodeGroup::missing_ranks() const {
  std::string missing;
  for (int r = 0; r < size(); ++r) {
    if (reached(slots_[static_cast<std::size_t>(r)]->arrived.load(), epoch_)) continue;
    missing += (missing.empty() ? "rank " : ", rank ") + std::to_string(name(r));
  }
  return missing;
}

void NodeGroup::give_up(const std::string& cause) {
  break_up(operation_ == Operation::kLeave ? exit_message(name(rank_)).c_str() : cause.c_str());
  throw LostRanks(cause, cause);
}

}  // namespace fastseq
