// The communicator of ranks whose messages another library sends, such as the host's side of torch.distributed.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "core/ranks/spread_communicator.h"

namespace fastseq {

// A library that sends messages, of one byte at least. All ranks call the same; errors are CommunicationErrors.
class Relay {
 public:
  Relay() = default;
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  virtual ~Relay() = default;

  // All ranks' bytes, one rank's after the other's.
  virtual void gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // Replaces data by root's.
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  // data[i] becomes its sum over all ranks or, `across` machines, over those with this one's number on theirs; the same
  // bits on all of them. In fp32 or fp64.
  virtual void sum(void* data, std::int64_t numel, DType dtype, bool across) = 0;
  // Makes the calls of all ranks raise.
  virtual void break_up(const char* cause) noexcept = 0;
  // Makes a call of another thread, under way or later, raise.
  virtual void interrupt() noexcept = 0;
};

class RelayCommunicator final : public SpreadCommunicator {
 public:
  // `name` is the transport's, if the ranks of a machine share no memory.
  RelayCommunicator(std::shared_ptr<Relay> relay, std::string name, int rank, int size, Node node)
      : SpreadCommunicator(rank, size, std::move(node)), relay_(std::move(relay)), name_(std::move(name)) {}

  std::string_view transport() const override { return hierarchical() ? "hierarchy" : std::string_view(name_); }
  bool any_thread() const override { return true; }
  void interrupt() override;
  [[noreturn]] void abort(int exit_code) override;

 protected:
  Outcome combine(const Call& call) override;
  std::string describe(const Call& call) override;
  std::string message_of(int failed_rank, const std::string& own) override;
  void send_to_all(std::span<std::byte> data, int root) override;
  void sum_over_ranks(void* data, std::int64_t numel, DType dtype, double factor) override;
  void sum_across(void* data, std::int64_t numel, DType dtype) override { sum(data, numel, dtype, 1.0, true); }
  void break_up(const char* cause) noexcept override { relay_->break_up(cause); }

 private:
  // Sums 16 bits in fp32, rounded once.
  void sum(void* data, std::int64_t numel, DType dtype, double factor, bool across);

  std::shared_ptr<Relay> relay_;
  std::string name_;
};

}  // namespace fastseq
