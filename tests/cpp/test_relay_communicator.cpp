// Ranks on several machines, whose messages another library sends: here threads, and a library of this test.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/base/half.h"
#include "core/ranks/node_communicator.h"
#include "core/ranks/relay_communicator.h"
#include "core/ranks/shared_memory.h"

namespace fastseq {

namespace {

// What the ranks of a team meet in.
struct Post {
  explicit Post(std::vector<int> machines)
      : sizes(std::move(machines)),
        barrier(size()),
        addresses(static_cast<std::size_t>(size())),
        data(addresses.size()) {
    for (int local = 0; local < std::ranges::min(sizes); ++local) {
      across.push_back(std::make_unique<std::barrier<>>(static_cast<std::ptrdiff_t>(sizes.size())));
    }
  }
  int size() const {
    int all = 0;
    for (const int each : sizes) all += each;
    return all;
  }
  std::vector<int> sizes;  // of the machines
  std::barrier<> barrier;
  std::vector<SlotAddress> addresses;
  std::vector<std::byte*> data;
  // Of the ranks with the number of this one of the first machine.
  std::vector<std::unique_ptr<std::barrier<>>> across;
  std::atomic<bool> broken = false;
};

class ThreadRelay final : public Relay {
 public:
  ThreadRelay(Post& post, int rank, std::vector<int> across) : post_(post), rank_(rank), across_(std::move(across)) {}

  void gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    std::vector<std::byte> own(mine.begin(), mine.end());
    meet(own.data());
    for (std::size_t r = 0; r < post_.data.size(); ++r) std::memcpy(&all[r * mine.size()], post_.data[r], mine.size());
    post_.barrier.arrive_and_wait();
  }
  void broadcast(std::span<std::byte> data, int root) override {
    meet(data.data());
    if (rank_ != root) std::memcpy(data.data(), post_.data[static_cast<std::size_t>(root)], data.size());
    post_.barrier.arrive_and_wait();
  }
  void sum(void* data, std::int64_t numel, DType dtype, bool across) override {
    CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64);
    if (dtype == DType::kFloat32) {
      add<float>(data, numel, across);
    } else {
      add<double>(data, numel, across);
    }
  }
  void break_up(const char* /*cause*/) noexcept override { post_.broken = true; }
  void interrupt() noexcept override {}

 private:
  void meet(std::byte* data) { meet(data, post_.barrier); }
  void meet(std::byte* data, std::barrier<>& barrier) {
    if (post_.broken) throw CommunicationError("the team is broken");
    post_.data[static_cast<std::size_t>(rank_)] = data;
    barrier.arrive_and_wait();
  }
  template <class T>
  void add(void* data, std::int64_t numel, bool across) {
    std::barrier<>& barrier = across ? *post_.across[static_cast<std::size_t>(across_.front())] : post_.barrier;
    meet(static_cast<std::byte*>(data), barrier);
    std::vector<T> sums(static_cast<std::size_t>(numel));
    std::vector<int> members = across_;
    if (!across) {
      members.clear();
      for (int r = 0; r < post_.size(); ++r) members.push_back(r);
    }
    for (const int r : members) {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        T value;
        std::memcpy(&value, post_.data[static_cast<std::size_t>(r)] + i * sizeof(T), sizeof(T));
        sums[i] += value;
      }
    }
    barrier.arrive_and_wait();
    std::memcpy(data, sums.data(), sums.size() * sizeof(T));
    barrier.arrive_and_wait();
  }

  Post& post_;
  int rank_;
  std::vector<int> across_;
};

// Runs body(comm) on all ranks of machines of these sizes; `shares`: the ranks of a machine share memory.
void run_machines(const std::vector<int>& sizes, bool shares, const std::function<void(Communicator&)>& body) {
  Post post(sizes);
  const int slices = std::ranges::min(sizes);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(post.size()));
  std::vector<std::thread> threads;
  int first = 0;
  for (const int size : sizes) {
    for (int local = 0; local < size; ++local) {
      threads.emplace_back([&, first, size, local] {
        const int rank = first + local;
        try {
          NodeLink link(rank);
          post.addresses[static_cast<std::size_t>(rank)] = link.address();
          post.barrier.arrive_and_wait();
          Node node;
          node.rank = local;
          node.size = size;
          if (shares) {
            CHECK(link.open(
                std::span(post.addresses).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(size)),
                local));
            post.barrier.arrive_and_wait();
            node = link.join(std::chrono::seconds(20));
            CHECK(node.memory != nullptr);
            CHECK_EQ(node.rank, local);
            CHECK_EQ(node.size, size);
            node.slices = slices;
          }
          std::vector<int> across;
          int start = 0;
          for (const int each : sizes) {
            across.push_back(start + local);
            start += each;
          }
          RelayCommunicator comm(std::make_shared<ThreadRelay>(post, rank, across), "threads", rank, post.size(),
                                 std::move(node));
          body(comm);
        } catch (...) {
          errors[static_cast<std::size_t>(rank)] = std::current_exception();
          post.barrier.arrive_and_drop();
        }
      });
    }
    first += size;
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

float value_of(int rank, std::size_t i) {
  return static_cast<float>(static_cast<int>((i * 7 + static_cast<std::size_t>(rank) * 5) % 31) - 15);
}

// Whose data are in memory that the others of its machine see.
enum class Shared { kNone, kAllButRank0, kAll };

void check_means(Communicator& comm, std::int64_t numel, Shared shared) {
  const auto count = static_cast<std::size_t>(numel);
  std::vector<float> own(count);
  const bool here = shared == Shared::kAll || (shared == Shared::kAllButRank0 && comm.rank() != 0);
  const std::shared_ptr<std::byte> memory = shared == Shared::kNone ? nullptr : comm.allocate(count * sizeof(float));
  auto* data = here ? reinterpret_cast<float*>(memory.get()) : own.data();
  double weights = 0;
  for (int r = 0; r < comm.size(); ++r) weights += r;  // rank 0's do not count
  for (std::size_t i = 0; i < count; ++i) data[i] = value_of(comm.rank(), i);
  if (comm.rank() == 0) std::fill_n(data, count, std::numeric_limits<float>::quiet_NaN());
  const Reduced reduced = comm.allreduce(data, numel, DType::kFloat32,
                                         {.weight = static_cast<double>(comm.rank()), .value = 1.5, .squares = true});
  CHECK_EQ(reduced.weight, weights);
  CHECK(std::abs(reduced.value - 1.5) < 1e-12);
  double squares = 0;
  for (std::size_t i = 0; i < count; ++i) {
    double wanted = 0;
    for (int r = 1; r < comm.size(); ++r) wanted += r / weights * static_cast<double>(value_of(r, i));
    CHECK(std::abs(static_cast<double>(data[i]) - wanted) < 1e-5);
    squares += static_cast<double>(data[i]) * static_cast<double>(data[i]);
  }
  CHECK(std::abs(reduced.sum_of_squares - squares) <= 1e-6 * squares);
}

}  // namespace

TEST(means_over_machines) {
  for (const std::vector<int>& sizes : std::vector<std::vector<int>>{{2, 2}, {1, 2}, {3, 1}}) {
    for (const bool shares : {true, false}) {
      run_machines(sizes, shares, [&](Communicator& comm) {
        CHECK_EQ(comm.transport(), shares ? "hierarchy" : "threads");
        for (const std::int64_t numel : {0, 1, 5, 3000, 200'001}) {
          for (const Shared shared : {Shared::kNone, Shared::kAllButRank0, Shared::kAll}) {
            check_means(comm, numel, shared);
          }
        }
      });
    }
  }
}

TEST(sixteen_bits_are_summed_in_fp32) {
  run_machines({1, 1, 1}, false, [](Communicator& comm) {
    std::vector<BFloat16> data(100, BFloat16(comm.rank() == 0 ? 256.0F : 1.0F));  // 256 + 1 is 256 in bf16
    comm.allreduce(data.data(), 100, DType::kBFloat16, {.mean = false});
    for (const BFloat16 each : data) CHECK_EQ(static_cast<float>(each), 258.0F);
  });
}

TEST(broadcasts_and_failures) {
  for (const bool shares : {true, false}) {
    run_machines({1, 2}, shares, [](Communicator& comm) {
      std::vector<int> data(50, comm.rank());
      comm.broadcast(std::as_writable_bytes(std::span(data)), 2);
      CHECK(data == std::vector<int>(50, 2));
      CHECK_THROWS(comm.broadcast(std::as_writable_bytes(std::span(data)), 3), CommunicationError);
      if (comm.rank() == 1) {
        comm.fail("no room");
      } else {
        try {
          comm.barrier();
          CHECK(false);
        } catch (const RemoteFailure& failure) {
          CHECK_EQ(failure.rank, 1);
          CHECK_EQ(std::string(failure.what()), "no room");
        }
      }
      comm.barrier();
      try {
        comm.set_purpose("a test");
        if (comm.rank() == 0) {
          comm.barrier();
        } else {
          comm.allocate(8);
        }
        CHECK(false);
      } catch (const CommunicationError& error) {
        CHECK(std::string(error.what()).find("rank 0 calls barrier") != std::string::npos);
      }
      CHECK_THROWS(comm.barrier(), CommunicationError);  // it was the last call
    });
  }
}

TEST(a_process_that_has_ended_is_missed_soon) {
  auto memory = SharedMemory::create(2 * sizeof(SlotAddress) + sizeof(std::atomic<int>));
  if (!memory) throw std::runtime_error("no shared memory");
  auto* const addresses = reinterpret_cast<SlotAddress*>(memory->data());
  auto* const step = reinterpret_cast<std::atomic<int>*>(memory->data() + 2 * sizeof(SlotAddress));
  const auto until = [step](int value) {
    while (step->load() < value) std::this_thread::yield();
  };
  const auto meet = [&](int rank) {
    NodeLink link(rank);
    addresses[rank] = link.address();
    step->fetch_add(1);
    until(2);
    const bool opened = link.open({addresses, 2}, rank);
    step->fetch_add(1);
    until(4);
    return std::make_unique<NodeCommunicator>(opened ? link.join(std::chrono::seconds(60)) : Node{}, nullptr);
  };
  const pid_t child = fork();
  if (child == 0) {
    meet(1)->barrier();
    _exit(0);
  }
  const auto comm = meet(0);
  comm->barrier();
  waitpid(child, nullptr, 0);
  const auto start = std::chrono::steady_clock::now();
  try {
    comm->barrier();
    CHECK(false);
  } catch (const CommunicationError& error) {
    CHECK_EQ(std::string(error.what()), "rank 1 has exited");
  }
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST(slots_that_are_not_there_are_not_opened) {
  NodeLink link(0);
  const NodeLink other(1);
  CHECK(link.open(std::vector{link.address(), other.address()}, 0));
  SlotAddress wrong = other.address();
  ++wrong.token;
  CHECK(!link.open(std::vector{link.address(), wrong}, 0));
  wrong = other.address();
  wrong.descriptor = -1;
  CHECK(!link.open(std::vector{link.address(), wrong}, 0));
  wrong.descriptor = 100'000;
  CHECK(!link.open(std::vector{link.address(), wrong}, 0));
}

// It may have arrived, so that the others go on, or wait for it in the call's next message.
TEST(a_rank_without_memory_in_an_agreement_breaks_up_the_team) {
  class PoorRelay final : public Relay {
   public:
    void gather(std::span<const std::byte> /*mine*/, std::span<std::byte> /*all*/) override { throw std::bad_alloc(); }
    void broadcast(std::span<std::byte> /*data*/, int /*root*/) override {}
    void sum(void* /*data*/, std::int64_t /*numel*/, DType /*dtype*/, bool /*across*/) override {}
    void break_up(const char* cause) noexcept override { causes.emplace_back(cause); }
    void interrupt() noexcept override {}
    std::vector<std::string> causes;
  };
  const auto relay = std::make_shared<PoorRelay>();
  RelayCommunicator comm(relay, "poor", 1, 2, {});
  CHECK_THROWS(comm.barrier(), std::bad_alloc);
  CHECK_EQ(relay->causes.size(), 1U);
  CHECK_EQ(relay->causes.front(), "rank 1 failed in the middle of barrier: std::bad_alloc");
  try {
    comm.barrier();
    CHECK(false);
  } catch (const CommunicationError& error) {
    CHECK_EQ(std::string(error.what()), "rank 1: cannot barrier: std::bad_alloc; restart the job");
  }
}

}  // namespace fastseq
