#include "core/ranks/node_communicator.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/ranks/weighted_sum.h"
#include "team.h"

namespace fastseq {

using testing::run_team;

namespace {

constexpr std::array kSizes = {1, 2, 3, 4};
constexpr std::array<std::int64_t, 8> kNumels = {0, 1, 7, 1024, 1025, 4096, 131072 + 3, 500001};

std::vector<float> data_of(int rank, std::int64_t numel) {
  std::mt19937 random(static_cast<unsigned>(rank));
  std::vector<float> data(static_cast<std::size_t>(numel));
  for (float& x : data) x = static_cast<float>(random() % 2048) / 64.0F - 16.0F;
  return data;
}

double weight_of(int rank) { return 1.0 + rank; }

std::vector<float> mean_of(int size, std::int64_t numel) {
  std::vector<std::vector<float>> all;
  all.reserve(static_cast<std::size_t>(size));
  std::vector<const void*> sources;
  std::vector<double> factors;
  double total = 0;
  for (int r = 0; r < size; ++r) total += weight_of(r);
  for (int r = 0; r < size; ++r) {
    all.push_back(data_of(r, numel));
    factors.push_back(weight_of(r) / total);
  }
  sources.reserve(all.size());
  for (const auto& data : all) sources.push_back(data.data());
  std::vector<float> mean(static_cast<std::size_t>(numel));
  weighted_sum(sources, factors, numel, DType::kFloat32, std::vector<void*>{mean.data()});
  return mean;
}

}  // namespace

TEST(means_are_the_same_bits_wherever_the_data_lie) {
  for (const int size : kSizes) {
    run_team(size, [&](NodeCommunicator& comm) {
      for (const std::int64_t numel : kNumels) {
        const std::vector<float> wanted = mean_of(size, numel);
        const std::size_t bytes = wanted.size() * sizeof(float);
        const Reduction reduction{.weight = weight_of(comm.rank()), .value = static_cast<double>(comm.rank())};

        std::vector<float> mine = data_of(comm.rank(), numel);
        const Reduced reduced = comm.allreduce(mine.data(), numel, DType::kFloat32, reduction);
        CHECK(mine == wanted);
        CHECK_EQ(reduced.weight, size * (size + 1) / 2.0);

        const auto shared = comm.allocate(bytes);
        auto* values = reinterpret_cast<float*>(shared.get());
        const std::vector<float> source = data_of(comm.rank(), numel);
        std::ranges::copy(source, values);
        comm.allreduce(values, numel, DType::kFloat32, reduction);
        CHECK(std::equal(wanted.begin(), wanted.end(), values));

        // In pieces, as buckets of a flat buffer: the same bits.
        std::ranges::copy(source, values);
        for (std::int64_t first = 0; first < numel; first += 3000) {
          comm.allreduce(values + first, std::min<std::int64_t>(3000, numel - first), DType::kFloat32, reduction);
        }
        CHECK(std::equal(wanted.begin(), wanted.end(), values));
      }
    });
  }
}

TEST(squares_of_the_means_are_summed_the_same_on_all_ranks) {
  for (const int size : kSizes) {
    std::vector<std::vector<double>> found(static_cast<std::size_t>(size));
    run_team(size, [&](NodeCommunicator& comm) {
      const Reduction reduction{.weight = weight_of(comm.rank()), .squares = true};
      for (const std::int64_t numel : kNumels) {
        double wanted = 0;
        for (const float x : mean_of(size, numel)) wanted += static_cast<double>(x) * static_cast<double>(x);
        std::vector<float> mine = data_of(comm.rank(), numel);
        const auto shared = comm.allocate(mine.size() * sizeof(float));
        std::ranges::copy(std::as_bytes(std::span(mine)), shared.get());
        for (void* data : {static_cast<void*>(mine.data()), static_cast<void*>(shared.get())}) {
          const double squares = comm.allreduce(data, numel, DType::kFloat32, reduction).sum_of_squares;
          CHECK(std::abs(squares - wanted) <= 1e-10 * wanted);
          found[static_cast<std::size_t>(comm.rank())].push_back(squares);
        }
        comm.barrier();  // shows no number
      }
    });
    for (const auto& other : found) CHECK(other == found.front());
  }
}

TEST(ranks_whose_data_lie_in_different_places_agree_all_the_same) {
  run_team(3, [](NodeCommunicator& comm) {
    constexpr std::int64_t kNumel = 5000;
    const auto shared = comm.allocate(2 * kNumel * sizeof(float));
    std::vector<float> own = data_of(comm.rank(), kNumel);
    // rank 0 uses memory of its own, ranks 1 and 2 different parts of shared memory
    float* values = comm.rank() == 0 ? own.data() : reinterpret_cast<float*>(shared.get()) + (comm.rank() - 1) * kNumel;
    if (comm.rank() != 0) std::ranges::copy(own, values);
    comm.allreduce(values, kNumel, DType::kFloat32, {.weight = weight_of(comm.rank())});
    CHECK(std::ranges::equal(std::span(values, kNumel), mean_of(3, kNumel)));
  });
}

TEST(sums_flags_and_values_travel_along) {
  run_team(4, [](NodeCommunicator& comm) {
    const int rank = comm.rank();
    std::array<double, 2> values = {1.0 + rank, 0.5};
    const Reduced reduced = comm.allreduce(values.data(), 2, DType::kFloat64,
                                           {.mean = false,
                                            .weight = rank == 1 ? 0.0 : 2.0,
                                            .value = static_cast<double>(rank),
                                            .flags = rank >= 2 ? kAlarm : 4});
    CHECK(values == (std::array<double, 2>{10.0, 2.0}));
    CHECK_EQ(reduced.weight, 6.0);
    CHECK_EQ(reduced.value, 5.0 / 3.0);
    CHECK_EQ(reduced.flags, 5U);
    CHECK_EQ(reduced.alarmed_rank, 2);
  });
}

TEST(broadcasts_and_barriers) {
  for (const int size : kSizes) {
    run_team(size, [&](NodeCommunicator& comm) {
      for (int root = 0; root < size; ++root) {
        for (const std::int64_t numel : kNumels) {
          std::vector<float> data = data_of(comm.rank(), numel);
          comm.broadcast(std::as_writable_bytes(std::span(data)), root);
          CHECK(data == data_of(root, numel));
        }
      }
      comm.barrier();
      CHECK_THROWS(comm.broadcast({}, size), CommunicationError);
    });
  }
}

TEST(ranks_in_random_haste_never_mix_their_data) {
  run_team(3, [](NodeCommunicator& comm) {
    std::mt19937 random(static_cast<unsigned>(comm.rank()) + 17);
    const auto shared = comm.allocate(40000);
    auto* values = reinterpret_cast<float*>(shared.get());
    for (int round = 0; round < 400; ++round) {
      if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
      const std::int64_t numel = 1 + (round * 37) % 10000;
      std::fill_n(values, numel, static_cast<float>(comm.rank() + round));
      comm.allreduce(values, numel, DType::kFloat32, {.mean = false});
      CHECK(std::all_of(values, values + numel, [&](float x) { return x == static_cast<float>(3 * round + 3); }));
    }
  });
}

TEST(epochs_wrap_around) {
  run_team(2,
           [](NodeCommunicator& comm) {
             for (int i = 0; i < 40; ++i) {
               auto x = static_cast<float>(comm.rank() + i);
               comm.allreduce(&x, 1, DType::kFloat32, {.mean = false});
               CHECK_EQ(x, static_cast<float>(2 * i + 1));
             }
           },
           {.first_epoch = 0xfffffff0U});
}

TEST(a_failed_rank_is_named_and_all_go_on) {
  run_team(3, [](NodeCommunicator& comm) {
    if (comm.rank() == 1) {
      comm.fail("out of cheese");
    } else {
      std::array<float, 4> x{};
      try {
        comm.allreduce(x.data(), 4, DType::kFloat32, {});
        CHECK(false);
      } catch (const RemoteFailure& failure) {
        CHECK_EQ(failure.rank, 1);
        CHECK_EQ(std::string(failure.what()), "out of cheese");
      }
    }
    float one = 1;
    comm.allreduce(&one, 1, DType::kFloat32, {.mean = false});
    CHECK_EQ(one, 3.0F);
  });
}

TEST(different_calls_are_an_error_on_all_ranks) {
  for (const int kind : {0, 1, 2, 3}) {
    run_team(2, [&](NodeCommunicator& comm) {
      std::array<float, 4> x{};
      const bool first = comm.rank() == 0;
      if (!first) comm.set_purpose("fit");
      std::string message;
      try {
        if (kind == 0 && first) comm.barrier();
        if (kind == 1 && first) comm.leave();
        if (!first || kind >= 2) {
          comm.allreduce(x.data(), kind == 2 && first ? 3 : 4, DType::kFloat32,
                         {.sequence = kind == 3 && first ? 1 : 0});
        }
      } catch (const CommunicationError& error) {
        message = error.what();
      }
      if (kind == 1 && first) return;  // a rank that leaves hears nothing
      CHECK(message.find("rank 0") != std::string::npos);
      CHECK(message.find("rank 1 calls allreduce of 16 bytes (mean of float32) in fit") != std::string::npos);
      CHECK_THROWS(comm.barrier(), CommunicationError);
    });
  }
}

TEST(ranks_that_do_not_come_are_named) {
  std::atomic<int> waiting = 2;
  run_team(4,
           [&](NodeCommunicator& comm) {
             const bool late = comm.rank() == 1 || comm.rank() == 3;
             while (late && waiting > 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
             std::string message;
             try {
               comm.barrier();
             } catch (const CommunicationError& error) {
               message = error.what();
             }
             if (!late) {
               --waiting;
               CHECK(message.find("for rank 1, rank 3") != std::string::npos);
             } else {
               CHECK(message.find("cannot continue: rank ") != std::string::npos);
               CHECK(message.find("for rank 1, rank 3") != std::string::npos);
             }
             CHECK_THROWS(comm.barrier(), CommunicationError);
           },
           {.timeout = std::chrono::seconds(1)});
}

TEST(all_of_a_meeting_s_waiting_has_one_deadline) {
  using std::chrono::milliseconds;
  std::atomic<bool> over = false;  // ranks 2 and 3 arrive once rank 0 has given up, however busy the machine is
  run_team(4,
           [&](NodeCommunicator& comm) {
             if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(1500));
             while (comm.rank() > 1 && !over) std::this_thread::sleep_for(milliseconds(10));
             std::string message;
             const auto begin = std::chrono::steady_clock::now();
             try {
               comm.barrier();
             } catch (const CommunicationError& error) {
               message = error.what();
             }
             const auto middle = std::chrono::steady_clock::now();
             over = true;
             CHECK(message.find("waited 2 s for ") != std::string::npos);
             CHECK(message.find("rank 2, rank 3") != std::string::npos);
             // Rank 0 does not restart its wait when rank 1 arrives (3.5 s); the others learn of it at once.
             CHECK(middle - begin < milliseconds(comm.rank() == 0 ? 3200 : 1700));
             CHECK_THROWS(comm.barrier(), CommunicationError);
             CHECK(std::chrono::steady_clock::now() - middle < milliseconds(1700));
           },
           {.timeout = std::chrono::seconds(2)});
}

TEST(a_rank_that_leaves_while_another_fails_is_known_to_have_left) {
  const auto begin = std::chrono::steady_clock::now();
  run_team(3, [](NodeCommunicator& comm) {
    if (comm.rank() == 0) return comm.leave();
    if (comm.rank() == 1) {
      comm.fail("not well");
    } else {
      CHECK_THROWS(comm.barrier(), RemoteFailure);
    }
    try {
      comm.barrier();
      CHECK(false);
    } catch (const CommunicationError& error) {
      CHECK(std::string(error.what()).find("rank 0 has exited") != std::string::npos);
    }
    comm.leave();
  });
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(30));
}

TEST(a_rank_that_leaves_does_not_raise_and_is_not_taken_for_one_that_waits) {
  std::atomic<bool> left = false;
  run_team(2,
           [&](NodeCommunicator& comm) {
             if (comm.rank() == 0) {
               comm.leave();
               left = true;
               return;
             }
             while (!left) std::this_thread::sleep_for(std::chrono::milliseconds(10));
             try {
               comm.barrier();
               CHECK(false);
             } catch (const CommunicationError& error) {
               CHECK_EQ(std::string(error.what()), "rank 1 cannot continue: rank 0 has exited");
             }
           },
           {.timeout = std::chrono::milliseconds(100)});
}

TEST(a_rank_that_leaves_does_not_wait_long_for_others_that_make_no_calls) {
  std::atomic<bool> left = false;
  run_team(2, [&](NodeCommunicator& comm) {
    if (comm.rank() == 0) {
      const auto begin = std::chrono::steady_clock::now();
      comm.leave();
      CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(15));
      left = true;
      return;
    }
    while (!left) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK_THROWS(comm.barrier(), CommunicationError);
  });
}

TEST(each_of_many_failures_has_its_own_message) {
  run_team(3, [](NodeCommunicator& comm) {
    for (int i = 0; i < 200; ++i) {
      const std::string message(8000, static_cast<char>('a' + i % 26));
      if (comm.rank() == 0) {
        comm.fail(message);
        continue;
      }
      try {
        comm.barrier();
        CHECK(false);
      } catch (const RemoteFailure& failure) {
        CHECK(failure.what() == message);
      }
    }
  });
}

TEST(a_rank_that_is_interrupted_leaves_nobody_waiting) {
  std::atomic<bool> interrupted = false;
  run_team(2, [&](NodeCommunicator& comm) {
    if (comm.rank() == 0) {
      std::thread ender([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        comm.interrupt();
      });
      CHECK_THROWS(comm.barrier(), CommunicationError);
      ender.join();
      interrupted = true;
    } else {
      while (!interrupted) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      try {
        comm.barrier();
        CHECK(false);
      } catch (const CommunicationError& error) {
        CHECK_EQ(std::string(error.what()), "rank 1 cannot continue: rank 0 has exited");
      }
    }
  });
}

TEST(there_is_an_end_to_the_numbers_of_buffers) {
  run_team(2,
           [](NodeCommunicator& comm) {
             const auto last = comm.allocate(20000);
             CHECK(comm.is_shared(last.get(), 20000));
             auto* values = reinterpret_cast<float*>(last.get());
             std::fill_n(values, 5000, 1.0F + static_cast<float>(comm.rank()));
             comm.allreduce(values, 5000, DType::kFloat32, {.mean = false});
             CHECK(std::all_of(values, values + 5000, [](float x) { return x == 3; }));
             CHECK_THROWS(comm.allocate(100), CommunicationError);
             comm.barrier();
           },
           {.first_buffer = NodeMemory::kMaxBuffers - 2});
}

TEST(memory_outlives_the_communicator) {
  std::vector<std::shared_ptr<std::byte>> kept(2);
  run_team(2, [&](NodeCommunicator& comm) { kept[static_cast<std::size_t>(comm.rank())] = comm.allocate(100); });
  kept[0].get()[99] = std::byte{1};
  kept.clear();
}

}  // namespace fastseq
