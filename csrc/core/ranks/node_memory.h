// Buffers mapped by all ranks of a node, and the exchange of data through them.
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

// The same bytes on all ranks of the node: [r] is rank r's copy.
using Peers = std::vector<std::byte*>;

class NodeMemory {
 public:
  // pids[r] is rank r's process. Buffers are numbered from `first_id`. Collective, like allocate, exchange and
  // broadcast.
  NodeMemory(NodeGroup& group, std::vector<int> pids, std::int64_t first_id = 0);

  // Whether the ranks see each other's memory; if not, nothing else may be called. The same on all ranks.
  bool usable() const { return staging_ != nullptr; }

  // Raises CommunicationError, on all ranks, if no numbers for buffers are left. Call it before allocate.
  void check_numbers() const;
  // A buffer of each rank, mapped by all. Null on all ranks if it fails on one.
  std::shared_ptr<std::byte> allocate(std::size_t bytes);

  // The place of data in such a buffer, as a number that is equal on all ranks if the place is the same; kPrivate if
  // they are elsewhere.
  std::int64_t place_of(const void* data, std::size_t bytes) const;
  Peers at(std::int64_t place) const;

  // Calls work(peers, first, count) for pieces that cover `data`, on all ranks between two meetings. If all `calls`
  // have the same place, the peers are the data; else they are copies, of at most kPieceBytes, which are copied back.
  // Returns the sum of what work returned, first over the pieces, then in the order of the ranks.
  using Work = std::function<double(const Peers& peers, std::size_t first, std::size_t count)>;
  double exchange(std::span<std::byte> data, std::span<const Call> calls, const Work& work);

  // Replaces data by those of the node's rank `root`.
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
