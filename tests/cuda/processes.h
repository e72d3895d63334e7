// Ranks as processes of this machine, which share a GPU; each begins with CUDA untouched.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/ranks/node_communicator.h"
#include "core/ranks/shared_memory.h"
#ifdef CUDA_ON_HOST
#include "device.h"
#endif

namespace fastseq::testing {

// Where processes find each other's numbers.
struct Pids {
  static constexpr int kMost = 16;
  std::atomic<int> pids[kMost];
};

// What a group of ranks needs, made before they are.
class Slots {
 public:
  explicit Slots(int size) {
    for (int r = 0; r < size; ++r) {
      auto memory = SharedMemory::create(sizeof(NodeGroup::Slot));
      if (!memory) throw std::runtime_error("no shared memory");
      slots_.push_back(reinterpret_cast<NodeGroup::Slot*>(memory->data()));
      memories_.push_back(*memory);
    }
  }
  const std::vector<NodeGroup::Slot*>& all() const { return slots_; }

 private:
  std::vector<SharedMemory> memories_;
  std::vector<NodeGroup::Slot*> slots_;
};

// This process as a rank of a group.
inline std::shared_ptr<Communicator> join(const Slots& slots, int rank, const std::vector<int>& pids, double timeout) {
  auto group = std::make_unique<NodeGroup>(slots.all(), rank, std::chrono::duration<double>(timeout));
  auto memory = std::make_unique<NodeMemory>(*group, pids);
  const int size = static_cast<int>(pids.size());
  return std::make_shared<NodeCommunicator>(
      Node{.rank = rank, .size = size, .owner = nullptr, .group = std::move(group), .memory = std::move(memory)},
      [](int) {});
}

inline int run_rank(int rank, int size, const Slots& slots, Pids& all,
                    const std::function<void(const std::shared_ptr<Communicator>&)>& body, double timeout) {
#ifdef CUDA_ON_HOST
  const cuda_on_host::Running running;
#endif
  failures() = 0;  // not those of tests before
  all.pids[rank] = getpid();
  std::vector<int> pids;
  for (int r = 0; r < size; ++r) {
    while (all.pids[r] == 0) std::this_thread::yield();
    pids.push_back(all.pids[r]);
  }
  try {
    body(join(slots, rank, pids, timeout));
  } catch (const std::exception& error) {
    fail(__FILE__, __LINE__, "rank " + std::to_string(rank) + ": " + error.what());
  }
  return failures() == 0 ? 0 : 1;
}

// Runs body(comm) in `size` processes; a check that fails in one fails here. `killed`: the rank that kills itself.
inline void run_processes(int size, const std::function<void(const std::shared_ptr<Communicator>&)>& body,
                          double timeout = 60, int killed = -1) {
  auto shared = SharedMemory::create(sizeof(Pids));
  if (!shared) throw std::runtime_error("no shared memory");
  const Slots slots(size);
  std::vector<pid_t> children;
  std::fflush(nullptr);
  for (int r = 0; r < size; ++r) {
    const pid_t child = fork();
    if (child == 0) _exit(run_rank(r, size, slots, *reinterpret_cast<Pids*>(shared->data()), body, timeout));
    children.push_back(child);
  }
  for (int r = 0; r < size; ++r) {
    int status = 0;
    waitpid(children[static_cast<std::size_t>(r)], &status, 0);
    if (r != killed) CHECK_EQ(status, 0);
  }
}

}  // namespace fastseq::testing
