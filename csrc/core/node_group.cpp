#include "core/node_group.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "core/platform.h"

#if FASTSEQ_HAS_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/communicator.h"

namespace fastseq {

namespace {

// A peer that is about to arrive is waited for awake, a millisecond or two: first without a word to the kernel, then
// letting others run. Waking up takes as long as a small model's step.
constexpr int kSpins = 2000;
constexpr int kYields = 2000;
constexpr auto kNap = std::chrono::milliseconds(50);  // looks at the clock that often while asleep

// Epochs wrap around: e is at or after `epoch` if it is less than half the circle ahead.
bool reached(std::uint32_t e, std::uint32_t epoch) { return static_cast<std::int32_t>(e - epoch) >= 0; }

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Other processes wait on these words too, which std::atomic::wait does not promise.
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
      // With more ranks than cores, the one that is waited for needs the core of the one that waits.
      spins_(slots_.size() > std::max(1U, std::thread::hardware_concurrency()) ? 0 : kSpins) {}

void NodeGroup::meet() {
  if (broken_) {
    throw CommunicationError("rank " + std::to_string(rank_) +
                             ": the ranks lost each other in an earlier call; restart the job");
  }
  ++epoch_;
  Slot& slot = own();
  // Sequentially consistent, and so is the sleeper's side: either it sees the new epoch, or it is seen to sleep.
  slot.arrived.store(epoch_);
  if (slot.sleepers.load() != 0) wake_all(slot.arrived);
  for (int r = 0; r < size(); ++r) {
    if (r != rank_) wait_for(r);
  }
  for (int r = 0; r < size(); ++r) {
    if (slots_[static_cast<std::size_t>(r)]->gave_up.load(std::memory_order_relaxed) != 0) {
      broken_ = true;
      throw CommunicationError("rank " + std::to_string(rank_) + " came too late: rank " + std::to_string(r) +
                               " has stopped waiting for it");
    }
  }
}

std::vector<Call> NodeGroup::exchange(const Call& call, std::span<const std::byte> small) {
  const std::size_t parity = (epoch_ + 1) % 2;
  own().calls[parity] = call;
  std::ranges::copy(small, own().small[parity].begin());
  meet();
  std::vector<Call> calls;
  calls.reserve(slots_.size());
  for (const Slot* slot : slots_) calls.push_back(slot->calls[parity]);
  return calls;
}

const std::byte* NodeGroup::small_of(int r) const {
  return slots_[static_cast<std::size_t>(r)]->small[epoch_ % 2].data();
}

void NodeGroup::set_message(std::string_view message) {
  auto& text = own().message;
  text[message.copy(text.data(), text.size() - 1)] = '\0';
}

std::string NodeGroup::message_of(int r) const { return slots_[static_cast<std::size_t>(r)]->message.data(); }

void NodeGroup::wait_for(int peer) {
  Slot& slot = *slots_[static_cast<std::size_t>(peer)];
  for (int i = 0; i < spins_; ++i) {
    if (reached(slot.arrived.load(std::memory_order_acquire), epoch_)) return;
    relax();
  }
  for (int i = 0; i < kYields; ++i) {
    if (reached(slot.arrived.load(std::memory_order_acquire), epoch_)) return;
    std::this_thread::yield();
  }
  sleep_until_arrived(slot);
}

void NodeGroup::sleep_until_arrived(Slot& peer) {
  const auto start = std::chrono::steady_clock::now();
  peer.sleepers.fetch_add(1);
  while (true) {
    const std::uint32_t seen = peer.arrived.load();
    if (reached(seen, epoch_)) break;
    if (std::chrono::steady_clock::now() - start > timeout_) {
      peer.sleepers.fetch_sub(1);
      give_up();
    }
    sleep_while_equal(peer.arrived, seen);
  }
  peer.sleepers.fetch_sub(1);
}

void NodeGroup::give_up() {
  broken_ = true;
  own().gave_up.store(1);
  std::string missing;
  for (int r = 0; r < size(); ++r) {
    if (reached(slots_[static_cast<std::size_t>(r)]->arrived.load(), epoch_)) continue;
    missing += (missing.empty() ? "rank " : ", rank ") + std::to_string(r);
  }
  throw CommunicationError(timeout_message(rank_, timeout_.count(), missing));
}

}  // namespace fastseq
