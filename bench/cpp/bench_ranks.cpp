// Averaging over ranks: allreduce, and an update of the bucketizer. Alone, or under mpirun, where rank 0 reports.
#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/base/dispatch.h"
#include "core/ranks/bucketizer.h"
#include "core/ranks/single_process.h"
#include "harness.h"
#ifdef FASTSEQ_WITH_MPI
#include "mpi/connect.h"
#include "mpi/mpi_communicator.h"
#endif

namespace fastseq::bench {

namespace {

using Ranks = std::shared_ptr<Communicator>;

// All ranks must make the same calls, so their number cannot depend on each rank's clock.
void add_collective(const std::string& name, const Ranks& ranks, std::int64_t bytes, Work work,
                    std::function<Call()> make) {
  const std::int64_t iterations = std::clamp<std::int64_t>((std::int64_t{1} << 27) / bytes, 5, 5000);
  add(name + "/" + std::to_string(ranks->size()) + (ranks->size() == 1 ? " rank, " : " ranks, ") +
          std::string(ranks->transport()),
      work, std::move(make))
      ->Iterations(iterations)
      ->UseRealTime();
}

void add_allreduce(const Ranks& ranks, std::int64_t bytes, DType dtype) {
  const std::string size =
      bytes < 1 << 20 ? std::to_string(bytes >> 10) + " KiB" : std::to_string(bytes >> 20) + " MiB";
  // A rank alone has nothing to move: what it takes is the call.
  const Work work{.bytes = ranks->size() == 1 ? 0 : static_cast<double>(bytes)};
  add_collective("allreduce/" + size + "/" + name_of(dtype), ranks, bytes, work, [ranks, bytes, dtype]() -> Call {
    const std::shared_ptr<std::byte> memory = ranks->allocate(static_cast<std::size_t>(bytes));
    const std::int64_t numel = bytes / static_cast<std::int64_t>(item_size(dtype));
    const auto call = [ranks, memory, numel, dtype] { return ranks->allreduce(memory.get(), numel, dtype, {}); };
    dispatch(dtype, [&]<class T>(Type<T>) {
      T* values = reinterpret_cast<T*>(memory.get());
      std::fill_n(values, numel, T(static_cast<float>(ranks->rank() + 1)));
      const Reduced reduced = call();
      require(reduced.weight == ranks->size(), "weight of allreduce");
      const float mean = static_cast<float>(ranks->size() + 1) / 2;
      require(std::all_of(values, values + numel, [&](T value) { return static_cast<float>(value) == mean; }),
              "allreduce");
    });
    return [call] { call(); };
  });
}

// An update of the parameters of a set, whose gradients come in the order of a backward pass.
struct Update {
  std::vector<std::int64_t> numels;
  std::vector<std::vector<float>> gradients;
  Bucketizer buckets;

  Update(const Ranks& ranks, const std::vector<std::int64_t>& set, std::int64_t bucket_bytes)
      : numels(set),
        buckets(ranks, numels, std::vector<DType>(numels.size(), DType::kFloat32), bucket_bytes, ranks->any_thread()) {
    for (const std::int64_t numel : numels) {
      gradients.emplace_back(static_cast<std::size_t>(numel), static_cast<float>(ranks->rank() + 1));
    }
  }

  Bucketizer::Result run() {
    buckets.start(1, 0);
    for (std::size_t i = gradients.size(); i-- > 0;) {
      buckets.ready(static_cast<std::int64_t>(i), gradients[i].data());
    }
    return buckets.finish();
  }

  void check(int size) {
    const Bucketizer::Result result = run();
    require(result.weight == size && result.nonfinite_rank == -1 && result.unused.empty(), "result of bucketizer");
    const Bucketizer::Buffer& buffer = buckets.buffers().at(0);
    const auto* means = reinterpret_cast<const float*>(buffer.memory.get());
    const float mean = static_cast<float>(size + 1) / 2;
    for (std::size_t k = 0; k < buffer.members.size(); ++k) {
      const float* first = means + buffer.layout.offsets[k];
      const std::int64_t numel = numels[static_cast<std::size_t>(buffer.members[k])];
      require(std::all_of(first, first + numel, [&](float value) { return value == mean; }), "bucketizer");
    }
  }
};

void add_update(const Ranks& ranks, const std::string& set, const std::vector<std::int64_t>& numels,
                std::int64_t bucket_bytes) {
  const std::int64_t bytes = 4 * std::accumulate(numels.begin(), numels.end(), std::int64_t{0});
  const std::string buckets = std::to_string(bucket_bytes >> 10) + " KiB";
  add_collective("bucketizer/" + set + "/buckets of " + buckets, ranks, bytes, {.bytes = static_cast<double>(bytes)},
                 [ranks, numels, bucket_bytes]() -> Call {
                   const auto update = std::make_shared<Update>(ranks, numels, bucket_bytes);
                   update->check(ranks->size());
                   return [update] { update->run(); };
                 });
}

void add_all(const Ranks& ranks) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t kib : {1, 64, 1024, 25 * 1024}) add_allreduce(ranks, kib << 10, dtype);
  }
  for (const std::int64_t kib : {64, 1024, 25 * 1024}) {
    add_update(ranks, "2000 tensors of 64", many_small_tensors(), kib << 10);
    add_update(ranks, "transformer of 13 MB", transformer(1), kib << 10);
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) {
  using namespace fastseq;  // NOLINT(google-build-using-namespace)
  std::shared_ptr<Communicator> ranks = std::make_shared<SingleProcess>();
#ifdef FASTSEQ_WITH_MPI
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  benchmark::AddCustomContext("mpi", mpi_library_version().substr(0, mpi_library_version().find(',')));
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size > 1) ranks = connect(MPI_COMM_WORLD, {});
#endif
  const int status = bench::run([&] { bench::add_all(ranks); }, argc, argv, ranks->rank() == 0);
  if (status != 0) ranks->abort(status);   // others may wait for this one
  benchmark::ClearRegisteredBenchmarks();  // they hold the ranks
  ranks->leave();
  ranks.reset();
#ifdef FASTSEQ_WITH_MPI
  MPI_Finalize();
#endif
  return status;
}
