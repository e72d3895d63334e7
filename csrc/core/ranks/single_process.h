// The communicator of a single process: same interface, nothing to exchange.
#pragma once

#include "core/ranks/communicator.h"

namespace fastseq {

// Zeroed memory in pages of its own, which can be registered with a GPU.
std::shared_ptr<std::byte> allocate_aligned(std::size_t bytes);

class SingleProcess final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::string_view transport() const override { return "single"; }
  bool any_thread() const override { return true; }

  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override {}
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override { return allocate_aligned(bytes); }
  bool is_shared(const void* /*data*/, std::size_t /*bytes*/) const override { return false; }
  void fail(std::string_view /*message*/) override {}
  void leave() override {}
  void interrupt() override {}
  [[noreturn]] void abort(int exit_code) override;
};

}  // namespace fastseq
