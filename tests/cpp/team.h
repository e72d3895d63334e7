// Ranks as threads of this process, with the memory and the communicator of ranks of one machine.
#pragma once

#include <unistd.h>

#include <barrier>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/ranks/node_communicator.h"
#include "core/ranks/shared_memory.h"

namespace fastseq::testing {

struct TeamOptions {
  std::chrono::duration<double> timeout = std::chrono::seconds(60);
  std::uint32_t first_epoch = 0;
  std::int64_t first_buffer = 0;
};

// Runs body(comm) on `size` ranks and raises what the first of them raised.
inline void run_team(int size, const std::function<void(NodeCommunicator&)>& body, TeamOptions options = {}) {
  std::vector<SharedMemory> memories;
  std::vector<NodeGroup::Slot*> slots;
  for (int r = 0; r < size; ++r) {
    auto memory = SharedMemory::create(sizeof(NodeGroup::Slot));
    if (!memory) throw std::runtime_error("no shared memory");
    auto* slot = reinterpret_cast<NodeGroup::Slot*>(memory->data());
    slot->arrived.store(options.first_epoch);
    slots.push_back(slot);
    memories.push_back(*memory);
  }
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(size));
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      try {
        auto group = std::make_unique<NodeGroup>(slots, r, options.timeout, options.first_epoch);
        auto memory = std::make_unique<NodeMemory>(*group, std::vector<int>(static_cast<std::size_t>(size), getpid()),
                                                   options.first_buffer);
        NodeCommunicator comm(
            Node{.rank = r, .size = size, .owner = nullptr, .group = std::move(group), .memory = std::move(memory)},
            [](int) {});
        body(comm);
      } catch (...) {
        errors[static_cast<std::size_t>(r)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace fastseq::testing
