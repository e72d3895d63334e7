// A rank runs out of memory at each possible place in an exchange; what happens to the others.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "team.h"

namespace {

thread_local long allocations_left = -1;  // negative: any number

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t bytes) {
  const bool none_left = allocations_left == 0;
  if (allocations_left >= 0) --allocations_left;
  if (none_left) throw std::bad_alloc();
  void* memory = std::malloc(bytes != 0 ? bytes : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t /*bytes*/) noexcept { std::free(memory); }

namespace fastseq {

TEST(a_rank_without_memory_spoils_no_other_rank_s_result) {
  constexpr std::int64_t kNumel = 200000;  // in two pieces
  int failures = 0;
  for (long allocations = 0; allocations < 40; ++allocations) {
    testing::run_team(2, [&](NodeCommunicator& comm) {
      std::vector<float> data(kNumel, comm.rank() == 0 ? 1.0F : 3.0F);
      if (comm.rank() == 0) {
        try {
          allocations_left = allocations;
          comm.allreduce(data.data(), kNumel, DType::kFloat32, {});
          allocations_left = -1;
        } catch (const std::bad_alloc&) {
          allocations_left = -1;
          ++failures;
          try {
            comm.fail("out of memory");
          } catch (const CommunicationError& error) {  // the others know already
            CHECK(!std::string(error.what()).empty());
          }
        }
        return;
      }
      try {
        comm.allreduce(data.data(), kNumel, DType::kFloat32, {});
        CHECK(std::ranges::all_of(data, [](float x) { return x == 2.0F; }));
      } catch (const RemoteFailure& failure) {
        CHECK_EQ(std::string(failure.what()), "out of memory");
      } catch (const CommunicationError& error) {
        CHECK_EQ(std::string(error.what()),
                 "rank 1 cannot continue: rank 0 failed in the middle of allreduce: std::bad_alloc");
      }
    });
  }
  CHECK(failures > 5);
}

// It has arrived, so that the others go on when they come, and its next call must not be taken for the end of this one.
TEST(a_rank_without_memory_for_its_error_spoils_no_other_rank_s_result) {
  constexpr std::int64_t kNumel = 20000;
  int failures = 0;
  for (long allocations = 0; allocations < 4; ++allocations) {
    std::atomic<bool> raised = false;
    testing::run_team(2,
                      [&](NodeCommunicator& comm) {
                        const auto shared = comm.allocate(kNumel * sizeof(float));
                        auto* values = reinterpret_cast<float*>(shared.get());
                        std::fill_n(values, kNumel, comm.rank() == 0 ? 1.0F : 3.0F);
                        if (comm.rank() == 0) {
                          try {
                            allocations_left = allocations;
                            comm.allreduce(values, kNumel, DType::kFloat32, {});
                          } catch (const std::bad_alloc&) {
                            ++failures;
                          } catch (const CommunicationError&) {  // there was enough
                            allocations_left = -1;
                          }
                          allocations_left = -1;
                          raised = true;
                          try {
                            comm.fail("out of memory");
                          } catch (const CommunicationError& error) {
                            CHECK(!std::string(error.what()).empty());
                          }
                          return;
                        }
                        while (!raised) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                        try {
                          comm.allreduce(values, kNumel, DType::kFloat32, {});
                          CHECK(false);
                        } catch (const RemoteFailure& failure) {
                          CHECK_EQ(std::string(failure.what()), "out of memory");
                        } catch (const CommunicationError& error) {
                          CHECK(std::string(error.what()).starts_with("rank 1 cannot continue: rank 0 "));
                        }
                      },
                      {.timeout = std::chrono::seconds(1)});
  }
  CHECK(failures > 1);
}

TEST(a_rank_without_memory_leaves_no_other_waiting_when_calls_differ) {
  const auto begin = std::chrono::steady_clock::now();
  int failures = 0;
  for (long allocations = 0; allocations < 8; ++allocations) {
    testing::run_team(2, [&](NodeCommunicator& comm) {
      comm.set_purpose("a purpose that is too long to be kept without memory");
      if (comm.rank() != 0) {
        try {
          std::vector<float> data(2);
          comm.allreduce(data.data(), 2, DType::kFloat32, {});
          CHECK(false);
        } catch (const std::exception& error) {  // out of step, or rank 0's
          CHECK(std::string(error.what()).find("rank 0") != std::string::npos ||
                std::string(error.what()) == "out of memory");
        }
        return;
      }
      try {
        allocations_left = allocations;
        comm.barrier();
      } catch (const std::bad_alloc&) {
        ++failures;
      } catch (const CommunicationError&) {
        allocations_left = -1;
      }
      allocations_left = -1;
      try {
        comm.fail("out of memory");
      } catch (const CommunicationError& error) {
        CHECK(!std::string(error.what()).empty());
      }
    });
  }
  CHECK(failures > 1);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
}

}  // namespace fastseq
