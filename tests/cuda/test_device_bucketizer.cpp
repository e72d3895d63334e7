// Gradients on a GPU, averaged over ranks, which are threads and share it: beside the bucketizer of the host.
#include "cuda/device_bucketizer.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "device_buffer.h"
#include "team.h"
#ifdef CUDA_ON_HOST
#include "device.h"
#endif

namespace fastseq {

namespace {

using cuda::DeviceBucketizer;
using cuda::Stream;
using testing::DeviceBuffer;
using testing::must;
using testing::run_team;

const std::vector<std::int64_t> kNumels = {3, 1000, 0, 17, 5000, 1, 64, 4096};
const std::vector<DType> kTypes = {DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat64,
                                   DType::kFloat32, DType::kFloat64, DType::kFloat32, DType::kFloat32};

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;  // takes ten times as long
#else
constexpr bool kThreadSanitizer = false;
#endif

// Gradients of a rank, as floats and doubles.
struct Gradients {
  std::vector<std::vector<float>> single;
  std::vector<std::vector<double>> wide;

  Gradients(int rank, int step) {
    for (std::size_t p = 0; p < kNumels.size(); ++p) {
      wide.emplace_back(static_cast<std::size_t>(kNumels[p]));
      for (std::size_t i = 0; i < wide[p].size(); ++i) {
        wide[p][i] = static_cast<double>((i * 7 + p * 3 + static_cast<std::size_t>(5 * rank + step)) % 97) / 8 - 6;
      }
      single.emplace_back(wide[p].begin(), wide[p].end());
    }
  }
  bool is_wide(std::size_t p) const { return kTypes[p] == DType::kFloat64; }
  const void* data(std::size_t p) const {
    return is_wide(p) ? static_cast<const void*>(wide[p].data()) : static_cast<const void*>(single[p].data());
  }
  std::size_t bytes(std::size_t p) const { return wide[p].size() * item_size(kTypes[p]); }
};

// What a rank does with its parameters in a step.
struct Step {
  double weight = 1;
  double scale = 1;
  std::vector<bool> used = std::vector<bool>(kNumels.size(), true);
};

Step plan(int rank, int step) {
  Step found{.weight = 1.0 + rank, .scale = step % 2 == 0 ? 1.0 : 0.5};
  if (step == 2) found.used[4] = rank != 0;  // some ranks have none
  if (step == 3) found.used[1] = false;      // no rank has one
  if (step == 4 && rank == 0) found.weight = 0;
  return found;
}

std::shared_ptr<Communicator> borrowed(NodeCommunicator& comm) {
  return {&comm, [](Communicator*) {}};
}

// The host's bucketizer on the same gradients.
struct Expected {
  Bucketizer::Result result;
  std::vector<std::vector<std::byte>> means;
};
Expected expected_of(Bucketizer& host, const Gradients& gradients, const Step& step) {
  host.start(step.weight, 0.25 * step.weight, false, step.scale);
  for (std::size_t p = kNumels.size(); p-- > 0;) {
    if (step.used[p]) host.ready(static_cast<std::int64_t>(p), gradients.data(p));
  }
  Expected found{.result = host.finish(), .means = std::vector<std::vector<std::byte>>(kNumels.size())};
  for (const Bucketizer::Buffer& buffer : host.buffers()) {
    for (std::size_t k = 0; k < buffer.members.size(); ++k) {
      const auto p = static_cast<std::size_t>(buffer.members[k]);
      const auto offset = static_cast<std::size_t>(buffer.layout.offsets[k]) * item_size(buffer.dtype);
      const std::byte* begin = buffer.memory.get() + offset;
      found.means[p].assign(begin, begin + gradients.bytes(p));
    }
  }
  return found;
}

// A rank's parameters on the device, whose gradients two streams make: copies stand for backward.
class Rank {
 public:
  Rank(NodeCommunicator& comm, std::int64_t bucket_bytes, bool threaded)
      : buckets_(borrowed(comm), kNumels, kTypes, bucket_bytes, threaded, true, 0) {
    for (std::size_t p = 0; p < kNumels.size(); ++p) {
      memory_.push_back(std::make_unique<DeviceBuffer<double>>(static_cast<std::size_t>(kNumels[p]) + 1));
    }
  }

  DeviceBucketizer& buckets() { return buckets_; }

  Bucketizer::Result run(const Gradients& gradients, const Step& step) {
    const Gradients& kept = *pinned_.emplace_back(std::make_unique<Gradients>(gradients));  // is read late
    buckets_.start(step.weight, 0.25 * step.weight, false, step.scale, reader_);
    for (std::size_t p = kNumels.size(); p-- > 0;) {
      if (!step.used[p]) continue;
      void* const from = const_cast<void*>(kept.data(p));
      registered_.push_back(std::make_unique<cuda::Registered>(from, kept.bytes(p)));
      const cudaStream_t producer = producers_[p % 2];
      must(cudaMemcpyAsync(memory_[p]->data(), from, kept.bytes(p), cudaMemcpyHostToDevice, producer));
      buckets_.ready(static_cast<std::int64_t>(p), memory_[p]->data(), producer);
    }
    return buckets_.finish(reader_);
  }

  // Reads all means as an optimizer does: on its own stream, without a wait of the host.
  void use() {
    auto& copies = used_.emplace_back();
    for (std::size_t p = 0; p < kNumels.size(); ++p) {
      const std::size_t bytes = pinned_.back()->bytes(p);
      copies.push_back(std::make_unique<DeviceBuffer<std::byte>>(bytes));
      must(cudaMemcpyAsync(copies.back()->data(), buckets_.device_place(static_cast<std::int64_t>(p)), bytes,
                           cudaMemcpyDeviceToDevice, reader_));
    }
  }
  // What it read in a step.
  std::vector<std::byte> mean(std::size_t step, std::size_t p) const { return used_[step][p]->read(reader_); }

 private:
  std::vector<std::unique_ptr<DeviceBuffer<double>>> memory_;
  std::vector<std::unique_ptr<Gradients>> pinned_;
  std::vector<std::unique_ptr<cuda::Registered>> registered_;
  std::vector<std::vector<std::unique_ptr<DeviceBuffer<std::byte>>>> used_;
  DeviceBucketizer buckets_;
  Stream producers_[2];
  Stream reader_;
};

void check_steps(int size, std::int64_t bucket_bytes, bool threaded) {
  run_team(size, [&](NodeCommunicator& comm) {
    Rank rank(comm, bucket_bytes, threaded);
    Bucketizer host(borrowed(comm), kNumels, kTypes, bucket_bytes, false, true);
    std::vector<Expected> wanted;
    for (int step = 0; step < 6; ++step) {
      const Gradients gradients(comm.rank(), step);
      const Step own = plan(comm.rank(), step);
      const Expected& expected = wanted.emplace_back(expected_of(host, gradients, own));
      const Bucketizer::Result found = rank.run(gradients, own);
      CHECK_EQ(found.weight, expected.result.weight);
      CHECK_EQ(found.value, expected.result.value);
      CHECK_EQ(found.norm, expected.result.norm);
      CHECK(found.unused == expected.result.unused);
      CHECK_EQ(found.nonfinite_rank, -1);
      rank.use();
    }
    for (std::size_t step = 0; step < wanted.size(); ++step) {
      for (std::size_t p = 0; p < kNumels.size(); ++p) CHECK(rank.mean(step, p) == wanted[step].means[p]);
    }
  });
}

}  // namespace

TEST(means_are_the_bits_of_the_host_s) {
  check_steps(1, 3000, true);
  if (!kThreadSanitizer) check_steps(2, 1, true);
  check_steps(3, 3000, true);
  check_steps(2, std::int64_t{1} << 30, true);
  check_steps(2, 3000, false);
}

#ifdef CUDA_ON_HOST
// What streams do is drawn; late means that they do nothing before it is needed.
TEST(in_many_orders) {
  for (const auto policy : {cuda_on_host::Policy::kLate, cuda_on_host::Policy::kRandom}) {
    cuda_on_host::set_policy(policy);
    for (std::uint64_t seed = 1; seed <= (kThreadSanitizer ? 1 : 2); ++seed) {
      cuda_on_host::seed(seed);
      check_steps(2, 3000, true);
    }
  }
}
#endif

TEST(gradients_that_are_not_finite_are_reported_by_their_rank) {
  run_team(3, [&](NodeCommunicator& comm) {
    Rank rank(comm, 3000, true);
    for (const double weight : {1.0, 0.0}) {
      Gradients gradients(comm.rank(), 0);
      if (comm.rank() == 1) gradients.single[1][999] = std::numeric_limits<float>::infinity();
      Step step;
      if (comm.rank() == 1) step.weight = weight;
      CHECK_EQ(rank.run(gradients, step).nonfinite_rank, weight == 0.0 ? -1 : 1);
    }
  });
}

TEST(errors_end_the_update_on_all_ranks) {
  run_team(2, [&](NodeCommunicator& comm) {
    Rank rank(comm, 3000, true);
    const Gradients gradients(comm.rank(), 0);
    if (comm.rank() == 1) {
      rank.buckets().start(1, 0, false, 1, nullptr);
      rank.buckets().abandon();
      comm.fail("out of memory");
    } else {
      CHECK_THROWS(rank.run(gradients, {}), RemoteFailure);
    }
    CHECK_EQ(rank.run(gradients, {}).weight, 2.0);  // the next update is whole
  });
}

}  // namespace fastseq
