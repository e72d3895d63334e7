#include "core/ranks/node_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/ranks/communicator.h"
#include "core/ranks/shared_memory.h"

namespace fastseq {

NodeMemory::NodeMemory(NodeGroup& group, std::vector<int> pids, std::int64_t first_id)
    : group_(group), pids_(std::move(pids)), next_id_(first_id), staging_(allocate(2 * kPieceBytes)) {
  if (staging_) staging_peers_ = at(place_of(staging_.get(), 2 * kPieceBytes));
}

void NodeMemory::check_numbers() const {
  if (next_id_ < kMaxBuffers) return;
  throw CommunicationError("a communicator makes no more than " + std::to_string(kMaxBuffers) +
                           " shared buffers: keep them, and use them again");
}

std::shared_ptr<std::byte> NodeMemory::allocate(std::size_t bytes) {
  const std::int64_t id = next_id_++;  // taken even if it fails, so that machines keep in step
  std::optional<SharedMemory> mine = SharedMemory::create(std::max<std::size_t>(bytes, 1));
  Call call{.operation = Operation::kAllocate, .handle = mine ? mine->descriptor() : -1};
  const std::vector<Call> calls = group_.exchange(call);

  std::vector<std::shared_ptr<std::byte>> mappings;
  for (int r = 0; r < group_.size(); ++r) {
    const auto index = static_cast<std::size_t>(r);
    if (!mine || calls[index].handle < 0) break;
    std::optional<SharedMemory> theirs =
        r == group_.rank() ? mine
                           : SharedMemory::open(pids_[index], static_cast<int>(calls[index].handle), mine->size());
    if (!theirs) break;
    mappings.push_back(theirs->mapping());
  }
  call.flags = mappings.size() == calls.size() ? 0 : 1;
  if (outcome_of(group_.exchange(call)).flags != 0 || !mine) return nullptr;
  mine->close_descriptor();

  Region region{.bytes = mine->size(), .id = id, .peers = {}};
  for (const auto& mapping : mappings) region.peers.push_back(mapping.get());
  std::byte* start = mine->data();
  {
    const std::scoped_lock lock(regions_->mutex);
    regions_->start_of[region.id] = start;
    regions_->by_start[start] = region;
  }
  return {start, [regions = regions_, mappings, id = region.id](const std::byte* pointer) {
            const std::scoped_lock lock(regions->mutex);
            regions->by_start.erase(pointer);
            regions->start_of.erase(id);
          }};
}

std::int64_t NodeMemory::place_of(const void* data, std::size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(data);
  const std::scoped_lock lock(regions_->mutex);
  const auto found = regions_->by_start.lower_bound(begin);  // the last region starting at or before data
  if (found == regions_->by_start.end()) return kPrivate;
  const auto offset = static_cast<std::size_t>(begin - found->first);
  if (offset > found->second.bytes || bytes > found->second.bytes - offset) return kPrivate;
  return (found->second.id << kOffsetBits) | static_cast<std::int64_t>(offset);
}

Peers NodeMemory::at(std::int64_t place) const {
  const std::scoped_lock lock(regions_->mutex);
  const std::byte* start = regions_->start_of.at(place >> kOffsetBits);
  Peers peers = regions_->by_start.at(start).peers;
  for (std::byte*& peer : peers) peer += place & ((std::int64_t{1} << kOffsetBits) - 1);
  return peers;
}

double NodeMemory::exchange(std::span<std::byte> data, std::span<const Call> calls, const Work& work) {
  const std::int64_t place = calls.front().place;
  if (place != kPrivate && std::ranges::all_of(calls, [&](const Call& call) { return call.place == place; })) {
    group_.meet(work(at(place), 0, data.size()));
    return group_.sum_of_numbers();
  }
  double mine = 0;
  for (std::size_t first = 0; first < data.size(); first += kPieceBytes) {
    const std::size_t count = std::min(kPieceBytes, data.size() - first);
    std::memcpy(staging_.get(), data.data() + first, count);
    group_.meet();
    mine += work(staging_peers_, first, count);
    group_.meet(mine);
    std::memcpy(data.data() + first, staging_.get(), count);
  }
  return data.empty() ? 0 : group_.sum_of_numbers();
}

void NodeMemory::broadcast(std::span<std::byte> data, int root) {
  const std::byte* source = staging_peers_[static_cast<std::size_t>(root)];
  // Two pieces in turn: while the root fills one, the others may still be reading the other.
  std::size_t half = 0;
  for (std::size_t first = 0; first < data.size(); first += kPieceBytes, half = kPieceBytes - half) {
    const std::size_t count = std::min(kPieceBytes, data.size() - first);
    if (group_.rank() == root) std::memcpy(staging_.get() + half, data.data() + first, count);
    group_.meet();
    if (group_.rank() != root) std::memcpy(data.data() + first, source + half, count);
  }
}

}  // namespace fastseq
