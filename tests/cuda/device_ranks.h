// A rank whose gradients are on a GPU, beside one whose gradients are on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "core/base/dispatch.h"
#include "cuda/device_bucketizer.h"
#include "device_buffer.h"

namespace fastseq::testing {

const std::vector<std::int64_t> kNumels = {3, 1000, 0, 17, 5000, 1, 64, 4096};

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;  // all takes ten times as long
#else
constexpr bool kThreadSanitizer = false;
#endif

// In how many drawn orders of streams and threads a test runs: FASTSEQ_ORDERS, for long runs.
inline std::uint64_t drawn_orders(std::uint64_t usually) {
  const char* const given = std::getenv("FASTSEQ_ORDERS");
  return given == nullptr ? usually : std::stoull(given);
}

// What parameters are of: all fp32, or some of another type.
inline std::vector<DType> types_with(DType other) {
  std::vector<DType> types(kNumels.size(), DType::kFloat32);
  for (const std::size_t p : {3U, 5U, 6U}) types[p] = other;
  return types;
}

// Gradients of a rank, in their types.
class Gradients {
 public:
  Gradients(const std::vector<DType>& types, int rank, int step) : types_(types) {
    for (std::size_t p = 0; p < kNumels.size(); ++p) {
      data_.emplace_back(bytes(p));
      for (std::size_t i = 0; i < static_cast<std::size_t>(kNumels[p]); ++i) {
        set(p, i, static_cast<float>((i * 7 + p * 3 + static_cast<std::size_t>(5 * rank + step)) % 97) / 8 - 6);
      }
    }
  }
  void set(std::size_t p, std::size_t i, float value) {
    dispatch(types_[p], [&]<class T>(Type<T>) {
      const T typed(value);
      std::memcpy(&data_[p][i * sizeof(T)], &typed, sizeof(T));
    });
  }
  const void* data(std::size_t p) const { return data_[p].data(); }
  std::size_t bytes(std::size_t p) const { return static_cast<std::size_t>(kNumels[p]) * item_size(types_[p]); }

 private:
  std::vector<DType> types_;
  std::vector<std::vector<std::byte>> data_;
};

// What a rank does with its parameters in a step.
struct Step {
  double weight = 1;
  double value = 0.25;
  double scale = 1;
  std::vector<bool> used = std::vector<bool>(kNumels.size(), true);
};

inline Step plan(int rank, int step) {
  Step found{.weight = 1.0 + rank, .value = 0.25 * rank - step, .scale = step % 2 == 0 ? 1.0 : 0.5};
  if (step == 2) found.used[4] = rank != 0;  // some ranks have none
  if (step == 3) found.used[1] = false;      // no rank has one
  if (step == 4 && rank == 0) found.weight = 0;
  return found;
}

// What an update leaves: on the host, or when its stream has come so far.
struct Means {
  Bucketizer::Result result;
  std::vector<std::vector<std::byte>> of;  // parameters
};

// The host's bucketizer on the same gradients.
inline Means on_host(Bucketizer& host, const Gradients& gradients, const Step& step) {
  host.start(step.weight, step.value, false, step.scale);
  for (std::size_t p = kNumels.size(); p-- > 0;) {
    if (step.used[p]) host.ready(static_cast<std::int64_t>(p), gradients.data(p));
  }
  Means found{.result = host.finish(), .of = std::vector<std::vector<std::byte>>(kNumels.size())};
  for (const Bucketizer::Buffer& buffer : host.buffers()) {
    for (std::size_t k = 0; k < buffer.members.size(); ++k) {
      const auto p = static_cast<std::size_t>(buffer.members[k]);
      const std::byte* begin =
          buffer.memory.get() + static_cast<std::size_t>(buffer.layout.offsets[k]) * item_size(buffer.dtype);
      found.of[p].assign(begin, begin + static_cast<std::size_t>(kNumels[p]) * item_size(buffer.dtype));
    }
  }
  return found;
}

// A rank's parameters on the device, whose gradients two streams make: copies stand for backward.
class DeviceRank {
 public:
  DeviceRank(const std::shared_ptr<Communicator>& comm, const std::vector<DType>& types, std::int64_t bucket_bytes,
             bool threaded, const cuda::ExchangeOptions& options, bool half_wire = false, int device = 0)
      : value_(1), buckets_(comm, kNumels, types, bucket_bytes, threaded, device, options, half_wire) {
    for (const std::int64_t numel : kNumels) {
      memory_.push_back(std::make_unique<DeviceBuffer<double>>(static_cast<std::size_t>(numel) + 1));
    }
  }

  cuda::DeviceBucketizer& buckets() { return buckets_; }
  cudaStream_t reader() const { return reader_; }

  void start(const Step& step) {
    Pinned& value = pin(&step.value, sizeof(double));
    must(cudaMemcpyAsync(value_.data(), value.data(), sizeof(double), cudaMemcpyHostToDevice, reader_));
    buckets_.start(step.weight, value_.data(), false, step.scale, reader_);
  }
  void give(const Gradients& gradients, std::size_t p) {
    Pinned& from = pin(gradients.data(p), gradients.bytes(p));
    const cudaStream_t producer = producers_[p % 2];
    packed_.precede(producer);  // the last gradient there has been read
    must(cudaMemcpyAsync(memory_[p]->data(), from.data(), gradients.bytes(p), cudaMemcpyHostToDevice, producer));
    buckets_.ready(static_cast<std::int64_t>(p), memory_[p]->data(), producer);
  }
  Bucketizer::Result run(const Gradients& gradients, const Step& step) {
    start(step);
    for (std::size_t p = kNumels.size(); p-- > 0;) {
      if (step.used[p]) give(gradients, p);
    }
    const Bucketizer::Result result = buckets_.finish(reader_);
    packed_.record(buckets_.packs());
    return result;
  }

  // Reads what an update has left as an optimizer does: on its own stream, without a wait of the host.
  void use(const Bucketizer::Result& result) {
    Used& used = used_.emplace_back(Used{.result = result, .means = {}, .outcome = nullptr});
    used.means.resize(kNumels.size());
    for (const auto& places : buckets_.places()) {
      for (std::size_t k = 0; k < places.members.size(); ++k) {
        const auto p = static_cast<std::size_t>(places.members[k]);
        const std::size_t item = item_size(places.dtype);
        used.means[p] = read_later(places.memory.get() + static_cast<std::size_t>(places.offsets[k]) * item,
                                   static_cast<std::size_t>(kNumels[p]) * item);
      }
    }
    if (buckets_.outcome() != nullptr) used.outcome = read_later(buckets_.outcome(), sizeof(cuda::Outcome));
  }
  // What it read after an update.
  Means used(std::size_t step) const {
    const Used& used = used_[step];
    Means found{.result = used.result, .of = {}};
    for (const auto& mean : used.means) found.of.push_back(mean->read(reader_));
    if (used.outcome == nullptr) return found;
    cuda::Outcome outcome{};
    std::memcpy(&outcome, used.outcome->read(reader_).data(), sizeof outcome);
    found.result.value = outcome.value;
    found.result.norm = outcome.norm;
    found.result.nonfinite_rank = static_cast<int>(outcome.nonfinite_rank);
    return found;
  }

 private:
  // Memory of the host that a stream reads later.
  class Pinned {
   public:
    Pinned(const void* from, std::size_t bytes)
        : bytes_(static_cast<const std::byte*>(from), static_cast<const std::byte*>(from) + bytes),
          registered_(bytes_.data(), bytes) {}
    const std::byte* data() const { return bytes_.data(); }

   private:
    std::vector<std::byte> bytes_;
    cuda::Registered registered_;
  };
  using Read = std::unique_ptr<DeviceBuffer<std::byte>>;
  struct Used {
    Bucketizer::Result result;
    std::vector<Read> means;
    Read outcome;
  };

  Pinned& pin(const void* from, std::size_t bytes) {
    return *pinned_.emplace_back(std::make_unique<Pinned>(from, bytes));
  }
  Read read_later(const void* from, std::size_t bytes) {
    auto copy = std::make_unique<DeviceBuffer<std::byte>>(bytes);
    must(cudaMemcpyAsync(copy->data(), from, bytes, cudaMemcpyDeviceToDevice, reader_));
    return copy;
  }

  std::vector<std::unique_ptr<DeviceBuffer<double>>> memory_;
  std::vector<std::unique_ptr<Pinned>> pinned_;
  std::vector<Used> used_;
  DeviceBuffer<double> value_;
  cuda::DeviceBucketizer buckets_;
  cuda::Stream producers_[2];
  cuda::Stream reader_;
  cuda::Event packed_;
};

inline bool close(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance * (1 + std::abs(b)); }

// Equal but for the order of sums.
inline bool is_close(const std::vector<std::byte>& a, const std::vector<std::byte>& b, DType dtype) {
  bool all = a.size() == b.size();
  dispatch(dtype, [&]<class T>(Type<T>) {
    const double tolerance = sizeof(T) == 8 ? 1e-14 : sizeof(T) == 4 ? 1e-6 : 2e-2;
    for (std::size_t at = 0; all && at < a.size(); at += sizeof(T)) {
      T values[2];
      std::memcpy(&values[0], &a[at], sizeof(T));
      std::memcpy(&values[1], &b[at], sizeof(T));
      all = close(static_cast<Accumulate<T>>(values[0]), static_cast<Accumulate<T>>(values[1]), tolerance);
    }
  });
  return all;
}

// Several updates, read late, beside the host's; `exact`: in their bits.
inline void check_updates(const std::shared_ptr<Communicator>& comm, const std::vector<DType>& types,
                          std::int64_t bucket_bytes, bool threaded, const cuda::ExchangeOptions& options, bool exact,
                          int updates = kThreadSanitizer ? 3 : 6) {
  DeviceRank rank(comm, types, bucket_bytes, threaded, options);
  Bucketizer host(comm, kNumels, types, bucket_bytes, false, true);
  std::vector<Means> wanted;
  for (int step = 0; step < updates; ++step) {
    const Gradients gradients(types, comm->rank(), step);
    const Step own = plan(comm->rank(), step);
    wanted.push_back(on_host(host, gradients, own));
    rank.use(rank.run(gradients, own));
  }
  for (std::size_t step = 0; step < wanted.size(); ++step) {
    const Means found = rank.used(step);
    CHECK_EQ(found.result.weight, wanted[step].result.weight);
    CHECK(close(found.result.value, wanted[step].result.value, 1e-12));
    CHECK(close(found.result.norm, wanted[step].result.norm, exact ? 1e-12 : 1e-3));
    CHECK(found.result.unused == wanted[step].result.unused);
    CHECK_EQ(found.result.nonfinite_rank, -1);
    for (std::size_t p = 0; p < kNumels.size(); ++p) {
      if (exact) {
        CHECK(found.of[p] == wanted[step].of[p]);
      } else {
        CHECK(is_close(found.of[p], wanted[step].of[p], types[p]));
      }
    }
  }
}

}  // namespace fastseq::testing
