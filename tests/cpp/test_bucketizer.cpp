#include "core/ranks/bucketizer.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/ranks/single_process.h"
#include "team.h"

namespace fastseq {

using testing::run_team;

namespace {

const std::vector<std::int64_t> numels = {3, 1000, 0, 17, 5000, 1, 64};
const std::vector<DType> dtypes = {DType::kFloat32, DType::kFloat32, DType::kFloat32, DType::kFloat64,
                                   DType::kFloat32, DType::kFloat64, DType::kFloat32};

double gradient_of(int rank, std::size_t parameter, std::int64_t element, int step) {
  return (static_cast<double>((element * 7 + static_cast<std::int64_t>(parameter) * 3 + step) % 64) - 32) * (rank + 1);
}

// All parameters' gradients of one rank.
struct Gradients {
  std::vector<std::vector<float>> single;
  std::vector<std::vector<double>> wide;

  Gradients(int rank, int step) {
    for (std::size_t p = 0; p < numels.size(); ++p) {
      single.emplace_back();
      wide.emplace_back();
      for (std::int64_t i = 0; i < numels[p]; ++i) {
        single.back().push_back(static_cast<float>(gradient_of(rank, p, i, step)));
        wide.back().push_back(gradient_of(rank, p, i, step));
      }
    }
  }
  const void* at(std::size_t p) const {
    return dtypes[p] == DType::kFloat64 ? static_cast<const void*>(wide[p].data()) : single[p].data();
  }
};

double averaged(const Bucketizer& buckets, std::size_t parameter, std::int64_t element) {
  for (const Bucketizer::Buffer& buffer : buckets.buffers()) {
    for (std::size_t k = 0; k < buffer.members.size(); ++k) {
      if (std::cmp_not_equal(buffer.members[k], parameter)) continue;
      const auto index = buffer.layout.offsets[k] + element;
      return buffer.dtype == DType::kFloat64 ? reinterpret_cast<const double*>(buffer.memory.get())[index]
                                             : reinterpret_cast<const float*>(buffer.memory.get())[index];
    }
  }
  return std::nan("");
}

Bucketizer make(const std::shared_ptr<Communicator>& comm, std::int64_t bytes, bool threaded) {
  return {comm, numels, dtypes, bytes, threaded};
}

// The team's communicators belong to the team.
std::shared_ptr<Communicator> borrowed(NodeCommunicator& comm) {
  return {&comm, [](Communicator*) {}};
}

}  // namespace

TEST(gradients_become_weighted_means) {
  for (const int size : {1, 2, 3, 4}) {
    for (const std::int64_t bytes : {1, 4096, 1 << 30}) {
      for (const bool threaded : {false, true}) {
        run_team(size, [&](NodeCommunicator& comm) {
          Bucketizer buckets = make(borrowed(comm), bytes, threaded);
          if (bytes == 1 << 30) CHECK_EQ(buckets.bucket_count(), 2);  // one per dtype
          for (int step = 0; step < 3; ++step) {
            const Gradients mine(comm.rank(), step);
            const double weight = comm.rank() == 0 ? 3 : 1;
            buckets.start(weight, comm.rank() * 10.0);
            // Backward starts at the end, not quite in order.
            for (const int p : {6, 4, 5, 3, 1, 2, 0}) buckets.ready(p, mine.at(static_cast<std::size_t>(p)));
            const Bucketizer::Result result = buckets.finish();
            CHECK_EQ(result.weight, 3.0 + size - 1);
            CHECK_EQ(result.nonfinite_rank, -1);
            CHECK(result.unused.empty());
            double mean_rank = 0;
            for (int r = 0; r < size; ++r) mean_rank += (r == 0 ? 3.0 : 1.0) * (r + 1) / result.weight;
            for (std::size_t p = 0; p < numels.size(); ++p) {
              for (std::int64_t i = 0; i < numels[p]; ++i) {
                const double wanted = gradient_of(0, p, i, step) * mean_rank;
                CHECK(std::abs(averaged(buckets, p, i) - wanted) <= 1e-5 * std::abs(wanted));
              }
            }
          }
        });
      }
    }
  }
}

TEST(gradients_are_scaled_where_they_are_gathered_and_where_they_lie) {
  for (const bool in_place : {false, true}) {
    run_team(2, [&](NodeCommunicator& comm) {
      Bucketizer buckets(borrowed(comm), std::vector<std::int64_t>{5000}, std::vector{DType::kFloat32}, 1000, true);
      const std::vector<float> fours(5000, 4.0F);
      const void* gradient = fours.data();
      if (in_place) {
        gradient = buckets.buffers()[0].memory.get();
        std::memcpy(buckets.buffers()[0].memory.get(), fours.data(), fours.size() * sizeof(float));
      }
      buckets.start(1, 0, false, comm.rank() == 0 ? 0.5 : 2);
      buckets.ready(0, gradient);
      buckets.finish();
      for (const int i : {0, 1023, 4999}) CHECK_EQ(averaged(buckets, 0, i), (2.0 + 8.0) / 2);
      comm.barrier();  // before others see this memory change
      buckets.start(1, 0);
      buckets.ready(0, fours.data());
      buckets.finish();
      CHECK_EQ(averaged(buckets, 0, 7), 4.0);
    });
  }
}

TEST(the_norm_of_the_means_is_the_same_on_all_ranks) {
  for (const int size : {1, 2, 3}) {
    for (const std::int64_t bytes : {1, 4096, 1 << 30}) {
      std::vector<double> found(static_cast<std::size_t>(size));
      run_team(size, [&](NodeCommunicator& comm) {
        Bucketizer buckets(borrowed(comm), numels, dtypes, bytes, true, true);
        for (const int step : {0, 1}) {
          const Gradients mine(comm.rank(), step);
          buckets.start(1, 0);
          for (const int p : {6, 4, 3, 1, 0}) buckets.ready(p, mine.at(static_cast<std::size_t>(p)));
          const double norm = buckets.finish().norm;
          double squares = 0;
          for (std::size_t p = 0; p < numels.size(); ++p) {
            for (std::int64_t i = 0; i < numels[p]; ++i) squares += std::pow(averaged(buckets, p, i), 2);
          }
          CHECK(std::abs(norm - std::sqrt(squares)) <= 1e-12 * norm);
          found[static_cast<std::size_t>(comm.rank())] = norm;
        }
      });
      for (const double norm : found) CHECK_EQ(norm, found.front());
    }
  }
}

TEST(parameters_without_gradients_are_zeros_and_named) {
  run_team(3, [](NodeCommunicator& comm) {
    Bucketizer buckets = make(borrowed(comm), 2000, true);
    const Gradients mine(comm.rank(), 0);
    buckets.start(1, 0);
    for (const int p : {6, 1, 0}) {
      if (p != 1 || comm.rank() == 2) buckets.ready(p, mine.at(static_cast<std::size_t>(p)));
    }
    const Bucketizer::Result result = buckets.finish();
    CHECK(result.unused == (std::vector<std::int64_t>{2, 3, 4, 5}));
    CHECK(std::abs(averaged(buckets, 1, 999) - gradient_of(2, 1, 999, 0) / 3) < 1e-5);
    CHECK_EQ(averaged(buckets, 4, 17), 0.0);
  });
}

TEST(a_rank_without_weight_only_listens) {
  run_team(2, [](NodeCommunicator& comm) {
    Bucketizer buckets = make(borrowed(comm), 2000, true);
    Gradients mine(comm.rank(), 0);
    if (comm.rank() == 0) mine.single[4].assign(mine.single[4].size(), std::numeric_limits<float>::quiet_NaN());
    buckets.start(comm.rank() == 0 ? 0 : 2, 5);
    for (std::size_t p = 0; p < numels.size(); ++p) buckets.ready(static_cast<std::int64_t>(p), mine.at(p));
    const Bucketizer::Result result = buckets.finish();
    CHECK_EQ(result.nonfinite_rank, -1);
    CHECK_EQ(result.weight, 2);
    CHECK_EQ(averaged(buckets, 4, 7), gradient_of(1, 4, 7, 0));
  });
}

TEST(a_rank_that_asks_for_attention_is_heard_by_all_in_that_step) {
  run_team(3, [&](NodeCommunicator& comm) {
    Bucketizer buckets = make(borrowed(comm), 2000, true);
    const Gradients mine(comm.rank(), 0);
    for (const int step : {0, 1, 2}) {
      buckets.start(comm.rank() == 2 ? 0 : 1, 0, step == 1 && comm.rank() == 2);
      for (std::size_t p = 0; p < numels.size(); ++p) buckets.ready(static_cast<std::int64_t>(p), mine.at(p));
      const Bucketizer::Result result = buckets.finish();
      CHECK_EQ(result.attention, step == 1);
      CHECK_EQ(result.nonfinite_rank, -1);
    }
  });
}

TEST(infinite_and_nan_gradients_are_told_to_all) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    run_team(3, [&](NodeCommunicator& comm) {
      Bucketizer buckets = make(borrowed(comm), 1, true);
      Gradients mine(comm.rank(), 0);
      if (comm.rank() == 1) mine.single[4][4999] = bad;
      buckets.start(1, 0);
      for (std::size_t p = 0; p < numels.size(); ++p) buckets.ready(static_cast<std::int64_t>(p), mine.at(p));
      CHECK_EQ(buckets.finish().nonfinite_rank, 1);
    });
  }
}

TEST(misuse_is_refused) {
  run_team(1, [](NodeCommunicator& comm) {
    CHECK_THROWS(make(borrowed(comm), 0, false).bucket_count(), std::invalid_argument);
    CHECK_THROWS(Bucketizer(borrowed(comm), numels, std::vector(3, DType::kFloat32), 1, false), std::invalid_argument);
    Bucketizer buckets = make(borrowed(comm), 1000, true);
    CHECK_THROWS(buckets.finish(), std::logic_error);
    const Gradients mine(0, 0);
    for (const double weight : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
      CHECK_THROWS(buckets.start(weight, 0), std::invalid_argument);
      CHECK(!buckets.started());
    }
    buckets.start(1, 0);
    CHECK_THROWS(buckets.start(1, 0), std::logic_error);
    buckets.ready(6, mine.at(6));
    CHECK_THROWS(buckets.ready(6, mine.at(6)), std::logic_error);
    buckets.finish();
  });
}

TEST(a_rank_that_fails_in_its_step_is_named_and_the_next_step_works) {
  for (const bool threaded : {false, true}) {
    run_team(3, [&](NodeCommunicator& comm) {
      Bucketizer buckets = make(borrowed(comm), 1, threaded);
      const Gradients mine(comm.rank(), 0);
      buckets.start(1, 0);
      buckets.ready(6, mine.at(6));
      if (comm.rank() == 2) {
        buckets.abandon();
        comm.fail("no more");
      } else {
        for (std::size_t p = 6; p-- > 0;) buckets.ready(static_cast<std::int64_t>(p), mine.at(p));
        int failed = -1;
        try {
          buckets.finish();
        } catch (const RemoteFailure& failure) {
          failed = failure.rank;
        }
        CHECK_EQ(failed, 2);
      }
      buckets.start(1, 0);
      for (std::size_t p = 7; p-- > 0;) buckets.ready(static_cast<std::int64_t>(p), mine.at(p));
      CHECK_EQ(buckets.finish().weight, 3);
    });
  }
}

TEST(ranks_at_different_steps_notice) {
  run_team(2, [](NodeCommunicator& comm) {
    Bucketizer buckets = make(borrowed(comm), 1 << 30, false);
    if (comm.rank() == 0) {
      buckets.start(1, 0);  // a step that the other rank does not make
      buckets.abandon();
    }
    buckets.start(1, 0);
    CHECK_THROWS(buckets.finish(), CommunicationError);
  });
}

namespace {

// A communicator that fails from the given allreduce on.
class FailsAt final : public Communicator {
 public:
  explicit FailsAt(int call) : calls_left_(call) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  std::string_view transport() const override { return "test"; }
  bool any_thread() const override { return true; }
  Reduced allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) override {
    if (calls_left_-- == 0) throw CommunicationError("lost");
    return single_.allreduce(data, numel, dtype, reduction);
  }
  void broadcast(std::span<std::byte> /*data*/, int /*root*/) override {}
  void barrier() override {}
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override { return allocate_aligned(bytes); }
  bool is_shared(const void* /*data*/, std::size_t /*bytes*/) const override { return false; }
  void fail(std::string_view /*message*/) override {}
  void leave() override {}
  void interrupt() override {}
  [[noreturn]] void abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  SingleProcess single_;
  int calls_left_;
};

}  // namespace

TEST(a_step_whose_exchange_fails_has_ended) {
  for (const bool threaded : {false, true}) {
    for (const int call : {0, 2}) {  // a bucket, and the search for parameters that nobody used
      Bucketizer buckets = make(std::make_shared<FailsAt>(call), 1 << 30, threaded);
      const Gradients mine(0, 0);
      buckets.start(1, 0);
      buckets.ready(6, mine.at(6));
      CHECK_THROWS(buckets.finish(), CommunicationError);
      CHECK(!buckets.started());
      buckets.start(1, 0);
      buckets.ready(6, mine.at(6));
      CHECK_EQ(buckets.finish().unused.size(), numels.size() - 1);
    }
  }
}

TEST(a_forked_child_can_drop_its_copy) {
  auto* buckets = new Bucketizer(std::make_shared<SingleProcess>(), numels, dtypes, 1000, true);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const pid_t child = fork();
  if (child == 0) {
    buckets->stop();
    delete buckets;
    _exit(0);
  }
  pid_t ended = 0;
  for (int i = 0; i < 1000 && ended == 0; ++i) {
    ended = waitpid(child, nullptr, WNOHANG);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  CHECK_EQ(ended, child);
  if (ended == 0) kill(child, SIGKILL);
  delete buckets;
}

TEST(a_rank_that_ends_in_mid_step_waits_for_nobody) {
  for (const bool threaded : {false, true}) {
    std::atomic<bool> stopped = false;
    run_team(2, [&](NodeCommunicator& comm) {
      Bucketizer buckets = make(borrowed(comm), 1, threaded);
      const Gradients mine(comm.rank(), 0);
      if (comm.rank() == 0) {
        buckets.start(1, 0);
        buckets.ready(6, mine.at(6));  // the other rank does not arrive
        buckets.stop();
        comm.leave();
        stopped = true;
        return;
      }
      while (!stopped && threaded) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      CHECK_THROWS(comm.barrier(), CommunicationError);
    });
  }
}

}  // namespace fastseq
