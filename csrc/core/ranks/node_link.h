// How the ranks of one machine come to share memory: each tells the others, by any messages, where its slot is.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/ranks/node_group.h"
#include "core/ranks/node_memory.h"
#include "core/ranks/shared_memory.h"

namespace fastseq {

// Where the ranks of a machine find a rank's slot.
struct SlotAddress {
  std::int64_t pid = 0;
  std::int64_t descriptor = -1;  // negative: the rank got no shared memory
  std::uint64_t token = 0;       // must match the opened slot's: in a container a pid is not unique
  std::int64_t name = 0;         // the rank's number among all
};

// A rank's machine: the ranks there, and the memory that they share.
struct Node {
  int rank = 0;
  int size = 1;
  std::shared_ptr<void> owner;  // keeps the slots' memory alive
  std::unique_ptr<NodeGroup> group;
  std::unique_ptr<NodeMemory> memory;  // null: the ranks share no memory
  int slices = 0;                      // the smallest machine's size: that many ranks exchange between machines
};

class NodeLink {
 public:
  // `name` is this rank's number among all.
  explicit NodeLink(int name);
  const SlotAddress& address() const { return address_; }
  // Opens the slots of all ranks of the machine, in the order of `addresses`, in which this rank is number `rank`.
  // False if one cannot be opened: the machine has no memory left, or ranks run in separate containers or as different
  // users.
  bool open(std::span<const SlotAddress> addresses, int rank);
  // The ranks that have opened each other's slots. Collective, after all have; Node::memory is null on all of them if
  // they cannot share memory.
  Node join(std::chrono::duration<double> timeout);

 private:
  std::optional<SharedMemory> own_;
  SlotAddress address_;
  int rank_ = 0;
  std::vector<SlotAddress> addresses_;
  std::vector<std::shared_ptr<std::byte>> mappings_;
};

}  // namespace fastseq
