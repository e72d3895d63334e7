#include "core/ranks/single_process.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "check.h"
#include "core/base/flat_layout.h"

namespace fastseq {

TEST(is_the_only_rank) {
  SingleProcess comm;
  CHECK_EQ(comm.rank(), 0);
  CHECK_EQ(comm.size(), 1);
  CHECK_EQ(comm.local_rank(), 0);
  CHECK_EQ(comm.local_size(), 1);
  CHECK_EQ(comm.transport(), "single");
  comm.barrier();
  comm.fail("nobody hears");
  comm.leave();
}

TEST(its_data_are_their_own_mean_and_sum) {
  SingleProcess comm;
  std::array<float, 3> values = {1, 2, 3};
  const Reduced mean = comm.allreduce(values.data(), 3, DType::kFloat32, {.weight = 2.5, .value = 7, .flags = 5});
  CHECK(values == (std::array<float, 3>{1, 2, 3}));
  CHECK_EQ(mean.weight, 2.5);
  CHECK_EQ(mean.value, 7);
  CHECK_EQ(mean.flags, 5U);
  CHECK_EQ(mean.alarmed_rank, 0);
  comm.allreduce(values.data(), 3, DType::kFloat32, {.mean = false});
  CHECK(values == (std::array<float, 3>{1, 2, 3}));
  const Reduced none = comm.allreduce(values.data(), 3, DType::kFloat32, {.weight = 0, .value = 7});
  CHECK(values == (std::array<float, 3>{}));
  CHECK_EQ(none.weight, 0);
  CHECK_EQ(mean.sum_of_squares, 0);  // nobody asked
  values = {1, 2, 3};
  CHECK_EQ(comm.allreduce(values.data(), 3, DType::kFloat32, {.squares = true}).sum_of_squares, 14);
  CHECK_EQ(none.value, 0);
}

TEST(broadcasts_from_itself_only) {
  SingleProcess comm;
  std::array<std::byte, 2> bytes = {std::byte{1}, std::byte{2}};
  comm.broadcast(bytes, 0);
  CHECK(bytes[1] == std::byte{2});
  CHECK_THROWS(comm.broadcast(bytes, 1), CommunicationError);
}

TEST(memory_is_aligned_and_zero) {
  SingleProcess comm;
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{64}, std::size_t{1000}}) {
    const auto memory = comm.allocate(bytes);
    CHECK_EQ(reinterpret_cast<std::uintptr_t>(memory.get()) % kFlatAlignment, 0U);
    CHECK(std::all_of(memory.get(), memory.get() + bytes, [](std::byte b) { return b == std::byte{0}; }));
  }
}

}  // namespace fastseq
