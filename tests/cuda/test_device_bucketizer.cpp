// Gradients on a GPU, averaged over ranks that are threads and share it: beside the bucketizer of the host.
#include "cuda/device_bucketizer.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "device_ranks.h"
#include "team.h"
#ifdef CUDA_ON_HOST
#include "device.h"
#endif

namespace fastseq {

namespace {

using testing::check_updates;
using testing::DeviceRank;
using testing::drawn_orders;
using testing::Gradients;
using testing::kThreadSanitizer;
using testing::run_team;
using testing::Step;
using testing::types_with;

const cuda::ExchangeOptions with_norm{.norm = true};  // threads share a process and a GPU: "staged"

std::shared_ptr<Communicator> borrowed(NodeCommunicator& comm) {
  return {&comm, [](Communicator*) {}};
}

void check_team(int size, DType other, std::int64_t bucket_bytes, bool threaded) {
  run_team(size, [&](NodeCommunicator& comm) {
    check_updates(borrowed(comm), types_with(other), bucket_bytes, threaded, with_norm, true);
  });
}

}  // namespace

TEST(means_are_the_bits_of_the_host_s) {
  check_team(1, DType::kFloat64, 3000, true);
  if (!kThreadSanitizer) check_team(2, DType::kFloat64, 1, true);
  check_team(3, DType::kBFloat16, 3000, true);
  check_team(2, DType::kFloat16, std::int64_t{1} << 30, true);
  check_team(2, DType::kFloat64, 3000, false);
}

#ifdef CUDA_ON_HOST
// What streams do is drawn; late means that they do nothing before it is needed.
TEST(in_many_orders) {
  for (const auto policy : {cuda_on_host::Policy::kLate, cuda_on_host::Policy::kRandom}) {
    cuda_on_host::set_policy(policy);
    for (std::uint64_t seed = 1; seed <= drawn_orders(kThreadSanitizer ? 1 : 2); ++seed) {
      cuda_on_host::seed(seed);
      check_team(1, DType::kFloat64, 3000, true);
      check_team(2, DType::kFloat64, 3000, true);
    }
  }
}
#endif

TEST(gradients_that_are_not_finite_are_reported_by_their_rank) {
  const auto types = types_with(DType::kFloat64);
  for (const int size : {1, 3}) {
    run_team(size, [&](NodeCommunicator& comm) {
      DeviceRank rank(borrowed(comm), types, 3000, true, with_norm);
      const int bad = size == 1 ? 0 : 1;
      for (const double weight : {1.0, 0.0}) {
        Gradients gradients(types, comm.rank(), 0);
        if (comm.rank() == bad) gradients.set(1, 999, std::numeric_limits<float>::infinity());
        Step step;
        if (comm.rank() == bad) step.weight = weight;
        rank.use(rank.run(gradients, step));
      }
      CHECK_EQ(rank.used(0).result.nonfinite_rank, bad);
      CHECK_EQ(rank.used(1).result.nonfinite_rank, -1);
    });
  }
}

TEST(errors_end_the_update_on_all_ranks) {
  const auto types = types_with(DType::kFloat64);
  run_team(2, [&](NodeCommunicator& comm) {
    DeviceRank rank(borrowed(comm), types, 3000, true, with_norm);
    const Gradients gradients(types, comm.rank(), 0);
    if (comm.rank() == 1) {
      rank.start({});
      rank.buckets().abandon();
      comm.fail("out of memory");
    } else {
      CHECK_THROWS(rank.run(gradients, {}), RemoteFailure);
    }
    CHECK_EQ(rank.run(gradients, {}).weight, 2.0);  // the next update is whole
  });
}

#ifdef CUDA_ON_HOST
// Whichever device the caller's thread is at.
TEST(all_is_made_on_the_model_s_device) {
  const auto types = types_with(DType::kFloat32);
  run_team(2, [&](NodeCommunicator& comm) {
    std::optional<cuda::OnDevice> on(std::in_place, 1);
    DeviceRank rank(borrowed(comm), types, 3000, true, with_norm, false, 1);
    on.reset();
    DeviceRank other(borrowed(comm), types, 3000, true, with_norm, false, 0);  // streams and memory of device 0
    cuda::DeviceBucketizer apart(borrowed(comm), testing::kNumels, types, 3000, true, 1, with_norm);
    for (const auto* buckets : {&rank.buckets(), &apart}) {
      for (const auto& places : buckets->places()) CHECK_EQ(cuda_on_host::device_of(places.memory.get()), 1);
    }
    on.emplace(1);
    const cuda::Stream reader;
    on.reset();
    apart.start(1, nullptr, false, 1, reader);
    CHECK_EQ(apart.finish(reader).weight, 2.0);
    const Gradients gradients(types, comm.rank(), 0);
    rank.use(rank.run(gradients, {}));  // streams of device 1 from a thread at device 0
    Bucketizer host(borrowed(comm), testing::kNumels, types, 3000, false, true);
    CHECK(rank.used(0).of == on_host(host, gradients, {}).of);
  });
}
#endif

TEST(exchanges_that_cannot_be_had_are_refused_on_all_ranks) {
  const auto types = types_with(DType::kFloat32);
  run_team(2, [&](NodeCommunicator& comm) {
    for (const char* const exchange : {"nccl", "cuda-ipc", "cuda-mpi", "telepathy"}) {
      CHECK_THROWS(DeviceRank(borrowed(comm), types, 3000, true, {.exchange = exchange}), std::invalid_argument);
    }
    const char* const mine = comm.rank() == 0 ? "staged" : "auto";
    CHECK_THROWS(DeviceRank(borrowed(comm), types, 3000, true, {.exchange = mine}), std::invalid_argument);
    CHECK_EQ(DeviceRank(borrowed(comm), types, 3000, true, {}).buckets().exchange(), "staged");
  });
}

// As bf16 on the wire: what the host's bucketizer makes of such gradients.
TEST(half_the_bytes_on_the_wire) {
  const auto types = types_with(DType::kFloat32);
  const std::vector<DType> halves(types.size(), DType::kBFloat16);
  run_team(2, [&](NodeCommunicator& comm) {
    CHECK_THROWS(DeviceRank(borrowed(comm), types_with(DType::kFloat64), 3000, true, with_norm, true),
                 std::invalid_argument);
    DeviceRank rank(borrowed(comm), types, 3000, true, with_norm, true);
    Bucketizer host(borrowed(comm), testing::kNumels, halves, 3000, false, true);
    rank.use(rank.run(Gradients(types, comm.rank(), 0), {.weight = 1.0 + comm.rank()}));
    const testing::Means wanted = on_host(host, Gradients(halves, comm.rank(), 0), {.weight = 1.0 + comm.rank()});
    const testing::Means found = rank.used(0);
    for (std::size_t p = 0; p < types.size(); ++p) {
      for (std::size_t i = 0; std::cmp_less(i, testing::kNumels[p]); ++i) {
        float mean = 0;
        BFloat16 half{};
        std::memcpy(&mean, &found.of[p][i * sizeof mean], sizeof mean);
        std::memcpy(&half, &wanted.of[p][i * sizeof half], sizeof half);
        CHECK_EQ(mean, static_cast<float>(half));
      }
    }
  });
}

}  // namespace fastseq
