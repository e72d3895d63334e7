// Ranks of one machine that stand for others: ranks of several machines, ranks whose MPI takes memory of GPUs.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/ranks/communicator.h"
#include "cuda/exchanges/ask_all.h"
#include "device_buffer.h"
#include "processes.h"

namespace fastseq::testing {

class WrappedRanks : public Communicator {
 public:
  explicit WrappedRanks(std::shared_ptr<Communicator> all) : all_(std::move(all)) {}

  int rank() const override { return all_->rank(); }
  int size() const override { return all_->size(); }
  int local_rank() const override { return all_->local_rank(); }
  int local_size() const override { return all_->local_size(); }
  std::string_view transport() const override { return all_->transport(); }
  bool any_thread() const override { return all_->any_thread(); }
  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override {
    return all_->allreduce(data, numel, dtype, reduction);
  }
  void broadcast(std::span<std::byte> data, int root) override { all_->broadcast(data, root); }
  void barrier() override { all_->barrier(); }
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override { return all_->allocate(bytes); }
  bool is_shared(const void* data, std::size_t bytes) const override { return all_->is_shared(data, bytes); }
  void fail(std::string_view message) override { all_->fail(message); }
  void leave() override { all_->leave(); }
  void interrupt() override { all_->interrupt(); }
  [[noreturn]] void abort(int exit_code) override {
    all_->abort(exit_code);
    std::_Exit(exit_code);
  }

 protected:
  Communicator& all() const { return *all_; }

 private:
  std::shared_ptr<Communicator> all_;
};

// Nodes of so many ranks, one after the other.
class SeveralNodes final : public WrappedRanks {
 public:
  // `slots`: for the ranks with one number in all nodes, for each number; made before the ranks are.
  SeveralNodes(std::shared_ptr<Communicator> ranks, const std::vector<int>& sizes, const std::vector<Slots>& slots)
      : WrappedRanks(std::move(ranks)), slices_(static_cast<int>(slots.size())) {
    std::vector<int> firsts = {0};
    std::partial_sum(sizes.begin(), sizes.end(), std::back_inserter(firsts));
    std::size_t node = 0;
    while (firsts[node + 1] <= rank()) ++node;
    for (int r = firsts[node]; r < firsts[node + 1]; ++r) node_.push_back(r);
    const std::vector<int> pids = cuda::ask_all(all(), getpid());
    const int here = rank() - firsts[node];
    if (here >= slices_) return;
    std::vector<int> own;
    for (std::size_t n = 0; n < sizes.size(); ++n) own.push_back(pids[static_cast<std::size_t>(firsts[n] + here)]);
    between_ = join(slots[static_cast<std::size_t>(here)], static_cast<int>(node), own, 60);
  }

  int local_rank() const override { return rank() - node_.front(); }
  int local_size() const override { return static_cast<int>(node_.size()); }
  std::vector<int> node_ranks() const override { return node_; }
  int slices() const override { return slices_; }
  void sum_over_nodes(void* data, std::int64_t numel, DType dtype) override {
    between_->allreduce(data, numel, dtype, {.mean = false});
  }

 private:
  std::vector<int> node_;
  int slices_;
  std::shared_ptr<Communicator> between_;
};

// Sums memory of the device. Some of the ranks may say that they cannot.
class DeviceRanks final : public WrappedRanks {
 public:
  explicit DeviceRanks(std::shared_ptr<Communicator> ranks, std::string problem = "")
      : WrappedRanks(std::move(ranks)), problem_(std::move(problem)) {}

  std::string device_problem() const override { return problem_; }
  // MPI knows no streams: what has not been written by now is not summed.
  void sum_on_device(void* data, std::int64_t numel, DType dtype) override {
    std::vector<std::byte> host(static_cast<std::size_t>(numel) * item_size(dtype));
    const cuda::Stream apart;
    cuda::copy(host.data(), data, host.size(), cudaMemcpyDeviceToHost, apart);
    cuda::synchronize(apart);
    all().allreduce(host.data(), numel, dtype, {.mean = false});
    cuda::copy(data, host.data(), host.size(), cudaMemcpyHostToDevice, apart);
    cuda::synchronize(apart);
  }

 private:
  std::string problem_;
};

}  // namespace fastseq::testing
