#include "core/ranks/node_link.h"

#include <unistd.h>

#include <random>
#include <utility>

namespace fastseq {

namespace {

NodeGroup::Slot* slot_in(const std::shared_ptr<std::byte>& memory) {
  return reinterpret_cast<NodeGroup::Slot*>(memory.get());
}

}  // namespace

NodeLink::NodeLink(int name) : own_(SharedMemory::create(sizeof(NodeGroup::Slot))) {
  std::random_device random;
  address_ = {.pid = getpid(),
              .descriptor = own_ ? own_->descriptor() : -1,
              .token = (static_cast<std::uint64_t>(random()) << 32) | random(),
              .name = name};
  if (own_) slot_in(own_->mapping())->token = address_.token;
}

bool NodeLink::open(std::span<const SlotAddress> addresses, int rank) {
  rank_ = rank;
  addresses_.assign(addresses.begin(), addresses.end());
  mappings_.clear();
  for (const SlotAddress& peer : addresses) {
    if (!own_ || peer.descriptor < 0) return false;
    const bool own = mappings_.size() == static_cast<std::size_t>(rank);
    const auto theirs = own ? own_
                            : SharedMemory::open(static_cast<int>(peer.pid), static_cast<int>(peer.descriptor),
                                                 sizeof(NodeGroup::Slot));
    if (!theirs || slot_in(theirs->mapping())->token != peer.token) return false;
    mappings_.push_back(theirs->mapping());
  }
  return true;
}

Node NodeLink::join(std::chrono::duration<double> timeout) {
  if (own_) own_->close_descriptor();
  std::vector<NodeGroup::Slot*> slots;
  std::vector<int> pids;
  std::vector<int> names;
  for (std::size_t r = 0; r < mappings_.size(); ++r) {
    slots.push_back(slot_in(mappings_[r]));
    pids.push_back(static_cast<int>(addresses_[r].pid));
    names.push_back(static_cast<int>(addresses_[r].name));
  }
  auto group = std::make_unique<NodeGroup>(std::move(slots), rank_, timeout);
  group->set_names(std::move(names));
  group->set_processes(pids);
  auto memory = std::make_unique<NodeMemory>(*group, std::move(pids));
  if (!memory->usable()) return {};
  return {.rank = rank_,
          .size = static_cast<int>(mappings_.size()),
          .owner = std::make_shared<std::vector<std::shared_ptr<std::byte>>>(std::move(mappings_)),
          .group = std::move(group),
          .memory = std::move(memory)};
}

}  // namespace fastseq
