// The ranks of one machine, and the shared memory in which they meet: epochs, calls, small data.
//
// An epoch is one meeting of all ranks. Each rank has a slot that the others read. Entering epoch e, it fills its slot,
// sets `arrived` to e and waits until all others have. Slots have two copies of their contents, for even and odd
// epochs: a rank that fills its slot for epoch e + 2 has passed e + 1, so all others have arrived there and are done
// with e.
//
// A rank that cannot continue, because others do not arrive or because it failed while they depend on it, breaks up the
// group: it shows the cause, and every other rank raises it at its current meeting, or at its next one. A rank that has
// raised may be an epoch ahead of others that still read its slot: it must not fill that again (broken_up).
//
// tests/campaigns/protocol/meeting.pml is a model of this, checked in all its orders; change both together.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/ranks/agreement.h"

namespace fastseq {

class NodeGroup {
 public:
  static constexpr std::size_t kSmallBytes = 4096;  // data up to this size are sent with the call
  static constexpr std::size_t kMaxMessage = 8192;

  // What one rank shows to the others. All-zero bytes are a valid slot; `start` sets the first epoch.
  struct Slot {
    alignas(64) std::atomic<std::uint32_t> arrived;
    std::atomic<std::uint32_t> broken;  // if so, `cause` says why
    std::array<double, 2> numbers;      // in the line that the others wait for
    alignas(64) std::atomic<std::uint32_t> sleepers;
    alignas(64) std::array<Call, 2> calls;
    alignas(64) std::array<std::array<std::byte, kSmallBytes>, 2> small;
    alignas(64) std::array<std::array<char, kMaxMessage>, 2> message;
    Cause cause;
    std::uint64_t token;  // identifies this slot to the others
  };
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  // slots[r] is rank r's, visible to all; every rank starts with the same `first_epoch`. If a rank does not arrive
  // within `timeout`, the others raise CommunicationError.
  NodeGroup(std::vector<Slot*> slots, int rank, std::chrono::duration<double> timeout, std::uint32_t first_epoch = 0);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(slots_.size()); }
  // The ranks' names in messages, if there are more ranks than these: names[r] is rank r's number among all.
  void set_names(std::vector<int> names) { names_ = std::move(names); }
  const std::vector<int>& names() const { return names_; }
  // processes[r] is rank r's, as this process sees it: who waits for one that has ended raises CommunicationError soon.
  void set_processes(std::vector<int> processes) { processes_ = std::move(processes); }
  // Called from time to time during a long wait. What it raises ends the wait.
  void set_idle(std::function<void()> idle) { idle_ = std::move(idle); }

  // A barrier, at which each rank may show a number. If it raises, whatever it raises, the group is broken up.
  void meet(double number = 0);
  // The sum of the numbers shown at the last meeting, in the order of the ranks; valid until the next meeting but one.
  double sum_of_numbers() const;
  // Shows `call` and, if given, `small` data to all; returns all ranks' calls, which stay valid until the next meeting
  // but one. Raises nothing after the meeting.
  std::vector<Call> exchange(const Call& call, std::span<const std::byte> small = {});
  // Rank r's small data of the last exchange.
  const std::byte* small_of(int r) const;
  // Set before the exchange in which its rank calls kFail.
  void set_message(std::string_view message);
  std::string message_of(int r) const;

  // Ends the group: no rank can continue. The first cause counts, whichever thread has it.
  void break_up(const char* cause) noexcept;
  // Whether this rank has.
  bool broken_up() const;
  // Ends a meeting that another thread waits in, and later ones that would wait, because this process ends.
  void interrupt() { interrupted_.store(true); }

 private:
  Slot& own() { return *slots_[static_cast<std::size_t>(rank_)]; }
  int name(int r) const { return names_.empty() ? r : names_[static_cast<std::size_t>(r)]; }
  // Waits for a peer. All waits of a meeting end `timeout_` after the start of its first long one.
  void wait_for(int peer, std::chrono::steady_clock::time_point& deadline);
  void sleep_until_arrived(int peer, std::chrono::steady_clock::time_point& deadline);
  bool has_ended(int peer) const;
  void wait_for_all();
  [[noreturn]] void give_up(const std::string& cause);
  std::string missing_ranks() const;
  void raise_if_broken() const;

  std::vector<Slot*> slots_;
  int rank_;
  std::chrono::duration<double> timeout_;
  std::uint32_t epoch_;
  int spins_;
  std::vector<int> names_;
  std::vector<int> processes_;
  std::function<void()> idle_;
  std::atomic<bool> interrupted_ = false;
  std::mutex breaking_up_;
  Operation operation_ = Operation::kBarrier;  // of the last exchange; after kLeave this rank stops for its own reasons
};

}  // namespace fastseq
