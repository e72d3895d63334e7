// Gradients on a GPU, averaged over ranks that are processes, in all ways.
#include <dlfcn.h>

#include <algorithm>
#include <csignal>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.h"
#include "device_ranks.h"
#include "processes.h"
#include "wrapped_ranks.h"
#ifdef CUDA_ON_HOST
#include "device.h"
#endif

namespace fastseq {

namespace {

using testing::check_updates;
using testing::DeviceRank;
using testing::DeviceRanks;
using testing::drawn_orders;
using testing::Gradients;
using testing::kThreadSanitizer;
using testing::run_processes;
using testing::SeveralNodes;
using testing::Slots;
using testing::types_with;

#ifdef CUDA_ON_HOST
const std::vector<std::string> exchanges = {"staged", "cuda-ipc", "nccl"};
#else
const std::vector<std::string> exchanges = {"staged", "cuda-ipc"};  // NCCL wants a GPU for each rank
#endif

// NCCL is for ranks that have a GPU each, and is loaded before it is asked for, as PyTorch does it.
void take_gpu([[maybe_unused]] const std::string& exchange, [[maybe_unused]] int rank) {
#ifdef CUDA_ON_HOST
  CHECK(dlopen(NCCL_ON_HOST, RTLD_NOW | RTLD_LOCAL) != nullptr);
  cuda_on_host::set_gpu(exchange == "nccl" ? static_cast<char>(rank) : 0);
#endif
}

void check_processes(const std::string& exchange, int size, DType other, std::int64_t bucket_bytes, bool threaded,
                     [[maybe_unused]] std::uint64_t seed) {
  run_processes(size, [&](const std::shared_ptr<Communicator>& comm) {
#ifdef CUDA_ON_HOST
    cuda_on_host::seed(seed + static_cast<std::uint64_t>(comm->rank()) * 1000);
#endif
    take_gpu(exchange, comm->rank());
    const cuda::ExchangeOptions options{.exchange = exchange, .norm = true};
    check_updates(comm, types_with(other), bucket_bytes, threaded, options, exchange != "nccl");
  });
}

}  // namespace

TEST(all_ways_have_the_host_s_means) {
  for (std::uint64_t seed = 1; seed <= drawn_orders(1); ++seed) {
    for (const std::string& exchange : exchanges) {
      check_processes(exchange, 1, DType::kFloat64, 3000, true, seed);
      check_processes(exchange, 2, DType::kFloat64, 3000, true, seed);
      check_processes(exchange, 3, DType::kBFloat16, 1, true, seed);
      check_processes(exchange, 4, DType::kFloat16, std::int64_t{1} << 30, false, seed);
    }
  }
}

TEST(ranks_of_several_machines_have_the_host_s_means) {
  std::vector<std::vector<int>> machines = {{2, 1}, {1, 2}, {2, 2}};
  std::vector<std::int64_t> limits = {3000, std::int64_t{1} << 30};
  if (kThreadSanitizer) {
    machines.resize(1);
    limits.resize(1);
  }
  for (const std::vector<int>& sizes : machines) {
    for (const std::int64_t bucket_bytes : limits) {
      const int size = std::accumulate(sizes.begin(), sizes.end(), 0);
      for (const std::string exchange : {"staged", "cuda-ipc"}) {
        std::vector<Slots> between;
        between.reserve(sizes.size());
        for (int r = 0; r < std::ranges::min(sizes); ++r) between.emplace_back(static_cast<int>(sizes.size()));
        run_processes(size, [&](const std::shared_ptr<Communicator>& all) {
          const auto comm = std::make_shared<SeveralNodes>(all, sizes, between);
          const cuda::ExchangeOptions options{.exchange = exchange, .norm = true};
          check_updates(comm, types_with(DType::kBFloat16), bucket_bytes, true, options, false, 10);
        });
      }
    }
  }
}

TEST(memory_of_the_device_given_to_mpi_has_the_host_s_means) {
  for (const DType other : {DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
    run_processes(3, [&](const std::shared_ptr<Communicator>& all) {
      const auto comm = std::make_shared<DeviceRanks>(all);
      check_updates(comm, types_with(other), 3000, true, {.exchange = "cuda-mpi", .norm = true}, false);
    });
  }
}

TEST(memory_of_the_device_is_refused_on_all_ranks_if_one_cannot_take_it) {
  run_processes(2, [&](const std::shared_ptr<Communicator>& all) {
    const auto comm = std::make_shared<DeviceRanks>(all, all->rank() == 1 ? "not built for it" : "");
    try {
      const DeviceRank rank(comm, types_with(DType::kFloat32), 3000, true, {.exchange = "cuda-mpi"});
      CHECK(false);
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).ends_with("cannot be used: rank 1: not built for it"));
    }
  });
}

TEST(the_way_is_found) {
  run_processes(2, [](const std::shared_ptr<Communicator>& comm) {
    const auto types = types_with(DType::kFloat32);
    take_gpu("", comm->rank());
    CHECK_EQ(DeviceRank(comm, types, 3000, true, {}).buckets().exchange(), "cuda-ipc");
    CHECK_THROWS(DeviceRank(comm, types, 3000, true, {.exchange = "nccl"}), std::invalid_argument);
#ifdef CUDA_ON_HOST
    take_gpu("nccl", comm->rank());
    CHECK_EQ(DeviceRank(comm, types, 3000, true, {}).buckets().exchange(), "nccl");
#endif
  });
}

TEST(errors_end_the_update_and_the_next_one_is_whole) {
  for (const std::string& exchange : exchanges) {
    run_processes(2, [&](const std::shared_ptr<Communicator>& comm) {
      take_gpu(exchange, comm->rank());
      const auto types = types_with(DType::kFloat64);
      DeviceRank rank(comm, types, 3000, true, {.exchange = exchange, .norm = true});
      const Gradients gradients(types, comm->rank(), 0);
      for (int round = 0; round < 3; ++round) {
        if (comm->rank() == 1) {
          rank.start({});
          for (const std::size_t p : {7U, 6U, 5U}) rank.give(gradients, p);  // some buckets are exchanged
          rank.buckets().abandon();
          comm->fail("out of memory");
        } else {
          CHECK_THROWS(rank.run(gradients, {}), RemoteFailure);
        }
        Bucketizer host(comm, testing::kNumels, types, 3000, false, true);
        const testing::Means wanted = on_host(host, gradients, {});
        rank.use(rank.run(gradients, {}));
        const testing::Means found = rank.used(static_cast<std::size_t>(round));
        CHECK_EQ(found.result.weight, 2.0);
        for (std::size_t p = 0; p < types.size(); ++p) CHECK(testing::is_close(found.of[p], wanted.of[p], types[p]));
      }
    });
  }
}

TEST(gradients_that_are_not_finite_are_reported_by_their_rank) {
  for (const std::string& exchange : exchanges) {
    run_processes(3, [&](const std::shared_ptr<Communicator>& comm) {
      take_gpu(exchange, comm->rank());
      const auto types = types_with(DType::kFloat64);
      DeviceRank rank(comm, types, 3000, true, {.exchange = exchange, .norm = true});
      for (const double weight : {1.0, 0.0}) {
        Gradients gradients(types, comm->rank(), 0);
        testing::Step step;
        if (comm->rank() > 0) gradients.set(1, 999, std::numeric_limits<float>::quiet_NaN());
        if (comm->rank() > 0) step.weight = weight;
        rank.use(rank.run(gradients, step));
      }
      CHECK_EQ(rank.used(0).result.nonfinite_rank, 1);
      CHECK_EQ(rank.used(1).result.nonfinite_rank, -1);
      CHECK(std::isfinite(rank.used(1).result.norm));
    });
  }
}

// How long ranks wait for others: longer than an update takes.
constexpr std::chrono::seconds kPatience{testing::kThreadSanitizer ? 20 : 3};

// The ranks that live learn of it within the timeout, whatever the device waits for.
TEST(a_rank_that_dies_ends_the_others) {
  for (const std::string& exchange : exchanges) {
    run_processes(
        2,
        [&](const std::shared_ptr<Communicator>& comm) {
          take_gpu(exchange, comm->rank());
          const auto types = types_with(DType::kFloat64);
          const cuda::ExchangeOptions options{.exchange = exchange, .timeout = kPatience};
          auto& rank = *new DeviceRank(comm, types, 3000, true, options);  // freeing waits for the device
          const Gradients gradients(types, comm->rank(), 0);
          rank.use(rank.run(gradients, {}));
          if (comm->rank() == 1) {
            rank.start({});
            for (const std::size_t p : {7U, 6U, 5U, 4U}) rank.give(gradients, p);
            std::raise(SIGKILL);
          }
          CHECK_THROWS(rank.run(gradients, {}), CommunicationError);
          rank.buckets().~DeviceBucketizer();  // ends, too, though the device may wait for ever
        },
        static_cast<double>(kPatience.count()), 1);
  }
}

#ifdef CUDA_ON_HOST
// What a rank that has died leaves to do does not keep another waiting for ever.
TEST(outcomes_that_wait_for_the_dead_are_told) {
  run_processes(
      2,
      [&](const std::shared_ptr<Communicator>& comm) {
        const auto types = types_with(DType::kFloat64);
        const cuda::ExchangeOptions options{.exchange = "cuda-ipc", .timeout = kPatience};
        auto& rank = *new DeviceRank(comm, types, 3000, true, options);
        const Gradients gradients(types, comm->rank(), 0);
        rank.use(rank.run(gradients, {}));
        rank.buckets().raise_if_broken();
        comm->barrier();
        if (comm->rank() == 1) cuda_on_host::wait_until(rank.buckets().packs(), [] { return false; });
        rank.run(gradients, {});  // the host has done all: its device has not
        if (comm->rank() == 1) std::raise(SIGKILL);
        CHECK_THROWS((rank.buckets().raise_if_broken(), 0), CommunicationError);
        rank.buckets().~DeviceBucketizer();
      },
      60, 1);
}

// What one rank cannot have is left by all; if it is needed, all say so.
TEST(memory_that_one_rank_does_not_have_is_missed_on_all) {
  run_processes(2, [&](const std::shared_ptr<Communicator>& comm) {
    take_gpu("nccl", comm->rank());
    std::vector<std::unique_ptr<cuda::DeviceMemory>> taken;
    for (std::size_t bytes = std::size_t{1} << 29; comm->rank() == 1 && bytes >= 256;) {
      try {
        taken.push_back(std::make_unique<cuda::DeviceMemory>(bytes));
      } catch (const std::runtime_error&) {
        bytes /= 2;
      }
    }
    for (const std::string exchange : {"auto", "staged", "cuda-ipc", "nccl"}) {
      try {
        const cuda::DeviceBucketizer made(comm, testing::kNumels, types_with(DType::kFloat32), 3000, true, 0,
                                          {.exchange = exchange});
        CHECK(false);
      } catch (const CommunicationError&) {
        CHECK(false);  // out of step
      } catch (const std::exception& error) {
        CHECK(std::string(error.what()).find("rank 1: cudaMalloc failed: out of memory") != std::string::npos);
      }
    }
  });
}

// What the device left then is no mean.
TEST(an_exchange_that_was_broken_off_is_reported_with_its_outcome) {
  run_processes(
      2,
      [](const std::shared_ptr<Communicator>& comm) {
        take_gpu("nccl", comm->rank());
        const auto types = types_with(DType::kFloat64);
        DeviceRank rank(comm, types, 3000, true, {.exchange = "nccl", .timeout = kPatience});
        const Gradients gradients(types, comm->rank(), 0);
        rank.use(rank.run(gradients, {}));
        rank.used(0);
        rank.buckets().raise_if_broken();
        if (comm->rank() == 1) {
          cuda_on_host::enqueue(rank.buckets().packs(), [] { std::this_thread::sleep_for(2 * kPatience); });
        }
        const auto read_an_update = [&] {
          rank.use(rank.run(gradients, {}));  // raises itself, if the end comes between two buckets
          rank.used(1);
          rank.buckets().raise_if_broken();
        };
        CHECK_THROWS((read_an_update(), 0), CommunicationError);
      },
      static_cast<double>(7 * kPatience.count()));
}

TEST(the_host_does_not_wait_for_the_device) {
  for (const std::string exchange : {"cuda-ipc", "nccl"}) {
    run_processes(2, [&](const std::shared_ptr<Communicator>& comm) {
      take_gpu(exchange, comm->rank());
      const auto types = types_with(DType::kFloat64);
      DeviceRank rank(comm, types, 3000, true, {.exchange = exchange, .norm = true});
      const Gradients gradients(types, comm->rank(), 0);
      rank.run(gradients, {});
      const auto before = cuda_on_host::host_waits();
      for (int update = 0; update < 5; ++update) rank.run(gradients, {});
      CHECK_EQ(cuda_on_host::host_waits(), before);
    });
  }
}
#endif

}  // namespace fastseq
