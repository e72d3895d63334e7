// The ranks of one machine and the memory through which they meet: epochs, the calls they make, small data.
//
// An epoch is one meeting of all ranks. Each rank has a slot that the others read. Entering epoch e, it fills its slot,
// sets `arrived` to e and waits until all others have. What a slot holds is kept twice, for even and odd epochs: a rank
// that fills its slot for epoch e + 2 has passed e + 1, so all others have arrived there and are done with e.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/agreement.h"

namespace fastseq {

class NodeGroup {
 public:
  static constexpr std::size_t kSmallBytes = 4096;  // data up to here goes with the call
  static constexpr std::size_t kMaxMessage = 8192;

  // What one rank shows to the others. All zero bytes are a valid one; `start` sets the first epoch.
  struct Slot {
    alignas(64) std::atomic<std::uint32_t> arrived;
    std::atomic<std::uint32_t> gave_up;
    alignas(64) std::atomic<std::uint32_t> sleepers;
    alignas(64) std::array<Call, 2> calls;
    alignas(64) std::array<std::array<std::byte, kSmallBytes>, 2> small;
    alignas(64) std::array<char, kMaxMessage> message;
  };
  static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

  // slots[r] is rank r's, all of them visible to all; every rank starts with the same `first_epoch`. Ranks that don't
  // arrive within `timeout` make the others raise CommunicationError.
  NodeGroup(std::vector<Slot*> slots, int rank, std::chrono::duration<double> timeout, std::uint32_t first_epoch = 0);

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(slots_.size()); }

  // A barrier.
  void meet();
  // Shows `call` to all, and, if given, `small` data; returns all ranks' calls, which stay valid until the next but one
  // meeting.
  std::vector<Call> exchange(const Call& call, std::span<const std::byte> small = {});
  // Rank r's small data of the last exchange.
  const std::byte* small_of(int r) const;
  // Filled in before the exchange in which its rank says kFail.
  void set_message(std::string_view message);
  std::string message_of(int r) const;

 private:
  Slot& own() { return *slots_[static_cast<std::size_t>(rank_)]; }
  void wait_for(int peer);
  void sleep_until_arrived(Slot& peer);
  [[noreturn]] void give_up();

  std::vector<Slot*> slots_;
  int rank_;
  std::chrono::duration<double> timeout_;
  std::uint32_t epoch_;
  int spins_;
  bool broken_ = false;  // somebody did not come in time
};

}  // namespace fastseq
