// Buffers that all ranks of a node have mapped, and what moves data through them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "core/ranks/node_group.h"

namespace fastseq {

// The same bytes of all ranks of the node: [r] is rank r's copy.
using Peers = std::vector<std::byte*>;

class NodeMemory {
 public:
  // pids[r] is rank r's process. Buffers are numbered from `first_id`. Collective, as allocate, exchange and broadcast
  // are.
  NodeMemory(NodeGroup& group, std::vector<int> pids, std::int64_t first_id = 0);

  // Whether the ranks can see each other's memory; if not, nothing else may be called. The same on all ranks.
  bool usable() const { return staging_ != nullptr; }

  // Raises CommunicationError, on all ranks, when all numbers for buffers are used up: before allocate.
  void check_numbers() const;
  // A buffer of each rank, mapped by all. Nothing, on all ranks, if it cannot be had on one.
  std::shared_ptr<std::byte> allocate(std::size_t bytes);

  // Where data lie in such a buffer, as a number that is the same on all ranks if they lie in the same place; kPrivate
  // if they don't.
  std::int64_t place_of(const void* data, std::size_t bytes) const;
  Peers at(std::int64_t place) const;

  // Calls work(peers, first, count) for pieces that cover `bytes`, on all ranks between two meetings. Where all ranks'
  // data lie in one place (`places`), the peers are the data; else they are copies, of at most kPieceBytes, which are
  // copied back.
  using Work = std::function<void(const Peers& peers, std::size_t first, std::size_t count)>;
  void exchange(std::span<std::byte> data, std::span<const Call> calls, const Work& work);

  // data become those of rank `root` of the node.
  void broadcast(std::span<std::byte> data, int root);

  static constexpr std::size_t kPieceBytes = std::size_t{512} * 1024;
  // A place is a buffer's number and an offset within it.
  static constexpr int kOffsetBits = 44;
  static constexpr std::int64_t kMaxBuffers = std::int64_t{1} << (63 - kOffsetBits);

 private:
  struct Region {
    std::size_t bytes;
    std::int64_t id;
    Peers peers;
  };
  // Shared with the deleters of the buffers, which may outlive this object.
  struct Regions {
    std::mutex mutex;
    std::map<const std::byte*, Region, std::greater<>> by_start;
    std::map<std::int64_t, const std::byte*> start_of;
  };

  NodeGroup& group_;
  std::vector<int> pids_;
  std::shared_ptr<Regions> regions_ = std::make_shared<Regions>();
  std::int64_t next_id_;
  std::shared_ptr<std::byte> staging_;  // two pieces
  Peers staging_peers_;
};

}  // namespace fastseq
