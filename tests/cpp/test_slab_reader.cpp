#include "core/reader/slab_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"

namespace fastseq {

namespace {

using Counts = std::vector<std::int64_t>;

// A file of 16-bit integers that is removed at the end.
class File {
 public:
  explicit File(const std::vector<std::int16_t>& values) {
    std::string path = (std::filesystem::temp_directory_path() / "fastseq-test-XXXXXX").string();
    const int descriptor = ::mkstemp(path.data());
    path_ = path;
    const auto bytes = static_cast<ssize_t>(values.size() * sizeof(std::int16_t));
    if (descriptor < 0 || ::write(descriptor, values.data(), static_cast<std::size_t>(bytes)) != bytes) {
      throw std::runtime_error("cannot write " + path_);
    }
    ::close(descriptor);
  }
  ~File() { (void)::unlink(path_.c_str()); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }

  // Drops the file from the page cache, if it lies on a disk.
  void drop() const {
    const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    CHECK_EQ(::fsync(descriptor), 0);
#ifdef POSIX_FADV_DONTNEED
    CHECK_EQ(::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
#endif
    ::close(descriptor);
  }

 private:
  std::string path_;
};

std::vector<std::int16_t> counted(std::int64_t numel) {
  std::vector<std::int16_t> values(static_cast<std::size_t>(numel));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int16_t>(i * 31 % 30011);
  return values;
}

ElementConverter converter(ElementType from, ElementType to) {
  return ElementConverter({.from = from, .swapped = false, .to = to});
}

Counts wait(SlabReader& reader) {
  while (true) {
    if (auto counts = reader.wait(std::chrono::milliseconds(1000))) return *counts;
  }
}

template <class T>
SlabRead read_into(std::vector<T>& target, ElementConverter convert, std::vector<Piece> pieces) {
  return {.convert = std::move(convert),
          .pieces = std::move(pieces),
          .to = reinterpret_cast<std::byte*>(target.data()),
          .numel = static_cast<std::int64_t>(target.size())};
}

// The ReadError that wait throws.
ReadError read_error(SlabReader& reader) {
  try {
    wait(reader);
  } catch (const ReadError& error) {
    return error;
  }
  throw std::logic_error("no ReadError came");
}

std::string message(SlabReader& reader) { return read_error(reader).what(); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Every combination of the conditions for how a piece is read, against plain loops.
template <class To>
void check_pieces(ElementType to) {
  const std::int64_t total = 600'000;
  const std::vector<std::int16_t> values = counted(total);
  const File file(values);
  SlabReader reader;
  const std::int64_t in_file = reader.add_file(file.path(), true);
  const std::int64_t in_memory = reader.add_memory(reinterpret_cast<std::uintptr_t>(values.data()));
  const std::int64_t anywhere = reader.add_memory(0);
  for (const std::int64_t numel : {1, 7, 400, 5000, 70'000}) {
    for (const std::int64_t gap : {0, 3, 1500, 30'000}) {
      for (const std::int64_t to_gap : {0, 2}) {
        for (const std::int64_t source : {in_file, in_memory, anywhere}) {
          const std::int64_t stride = numel + gap;
          const std::int64_t steps = std::min<std::int64_t>(300, (total - 5 - numel) / stride + 1);
          const std::int64_t to_step = numel + to_gap;
          const std::int64_t base =
              source == anywhere ? static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(values.data())) : 0;
          const bool backwards = numel == 7;
          const std::int64_t first = 5 + (backwards ? (steps - 1) * stride : 0);
          const std::int64_t step = backwards ? -stride : stride;
          std::vector<To> target(static_cast<std::size_t>(steps * to_step + 1), To{9});
          reader.submit({read_into(target, converter(ElementType::kInt16, to),
                                   {{source, base + first * 2, steps, step * 2, numel, 1, to_step}})});
          CHECK_EQ(wait(reader)[0], 0);
          bool right = target[0] == To{0};
          for (std::int64_t s = 0; s < steps; ++s) {
            for (std::int64_t i = 0; i < to_step; ++i) {
              const auto at = static_cast<std::size_t>(1 + s * to_step + i);
              const bool covered = i < numel;
              const To expected =
                  covered ? static_cast<To>(values[static_cast<std::size_t>(first + s * step + i)]) : To{0};
              right &= at >= target.size() || target[at] == expected;
            }
          }
          if (!right) {
            testing::fail(__FILE__, __LINE__,
                          "numel " + std::to_string(numel) + ", gap " + std::to_string(gap) + ", source " +
                              std::to_string(source));
          }
        }
      }
    }
  }
}

int descriptors() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/fd")) count += entry.path().empty() ? 0 : 1;
  return count;
}

}  // namespace

TEST(pieces_are_read_and_converted) {
  check_pieces<float>(ElementType::kFloat32);
  check_pieces<std::int64_t>(ElementType::kInt64);
}

TEST(floats_are_read_straight_into_their_place) {
  // From the disk and from the page cache, with and without gaps on either side.
  std::vector<float> values(300'000);
  std::iota(values.begin(), values.end(), 1.0F);
  values[5000] = std::numeric_limits<float>::infinity();
  values[250'010] = std::nanf("");
  std::vector<std::int16_t> halves(values.size() * 2);
  std::memcpy(halves.data(), values.data(), values.size() * sizeof(float));
  const File file(halves);
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), false);
  for (const std::int64_t numel : {10, 1000, 3000, 100'000}) {
    const std::int64_t rows = 300'000 / numel;
    for (const std::int64_t every : {1, 3}) {
      const std::int64_t steps = (rows + every - 1) / every;
      for (const std::int64_t to_step : {numel, numel + 1}) {
        std::vector<float> target(static_cast<std::size_t>(steps * to_step), -1.0F);
        if (to_step == numel) file.drop();
        reader.submit({read_into(target, converter(ElementType::kFloat32, ElementType::kFloat32),
                                 {{source, 0, steps, every * numel * 4, numel, 0, to_step}})});
        const std::int64_t count = wait(reader)[0];
        std::int64_t expected_count = 0;
        bool right = true;
        for (std::int64_t s = 0; s < steps; ++s) {
          for (std::int64_t i = 0; i < numel; ++i) {
            const float expected = values[static_cast<std::size_t>(s * every * numel + i)];
            const float result = target[static_cast<std::size_t>(s * to_step + i)];
            right &= std::isnan(expected) ? std::isnan(result) : result == expected;
            expected_count += std::isfinite(expected) ? 0 : 1;
          }
        }
        CHECK(right);
        CHECK_EQ(count, expected_count);
      }
    }
  }
}

TEST(features_go_on_over_the_blocks_of_a_long_row) {
  const std::int64_t numel = 300'001;
  const std::vector<std::int16_t> values = counted(numel);
  const File file(values);
  std::vector<double> center(7);
  std::iota(center.begin(), center.end(), 0.5);
  SlabReader reader;
  const std::int64_t in_file = reader.add_file(file.path(), true);
  const std::int64_t in_memory = reader.add_memory(reinterpret_cast<std::uintptr_t>(values.data()));
  for (const std::int64_t source : {in_file, in_memory}) {
    for (const std::int64_t row : {numel, std::int64_t{70'001}, std::int64_t{10}}) {  // each row starts at feature 0
      const std::int64_t steps = std::min(numel / row, std::int64_t{4});
      std::vector<float> target(static_cast<std::size_t>(steps * row));
      const ElementConverter convert({.from = ElementType::kInt16,
                                      .swapped = false,
                                      .to = ElementType::kFloat32,
                                      .features = 7,
                                      .center = center.data()});
      reader.submit({read_into(target, convert, {{source, 0, steps, row * 2, row, 0, row}})});
      wait(reader);
      bool right = true;
      for (std::int64_t i = 0; i < steps * row; ++i) {
        const auto at = static_cast<std::size_t>(i);
        right &= target[at] == static_cast<float>(values[at] - center[static_cast<std::size_t>(i % row % 7)]);
      }
      CHECK(right);
    }
  }
}

TEST(requests_of_several_reads_come_back_in_order) {
  const std::vector<std::int16_t> values = counted(10'000);
  const File file(values);
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), true);
  constexpr std::int64_t kRequests = 200;
  std::vector<std::vector<float>> targets(2 * kRequests, std::vector<float>(100));
  for (std::size_t i = 0; i < kRequests; ++i) {
    const auto offset = static_cast<std::int64_t>(i) * 80;
    std::vector<SlabRead> reads;
    reads.reserve(2);
    for (std::size_t k = 0; k < 2; ++k) {
      reads.push_back(read_into(targets[2 * i + k], converter(ElementType::kInt16, ElementType::kFloat32),
                                {{source, offset, 1, 0, 50, 50, 0}, {source, offset + 100, 2, 50, 25, 0, 25}}));
    }
    reader.submit(std::move(reads));
  }
  for (std::size_t i = 0; i < kRequests; ++i) {
    CHECK_EQ(wait(reader).size(), 2U);
    for (std::size_t j = 0; j < 50; ++j) {
      CHECK_EQ(targets[2 * i][50 + j], static_cast<float>(values[i * 40 + j]));
      CHECK_EQ(targets[2 * i + 1][j], static_cast<float>(values[i * 40 + 50 + j]));
    }
  }
  CHECK_THROWS(wait(reader), std::runtime_error);  // nothing is left
}

TEST(a_file_that_ends_early_is_named_with_the_read) {
  const File file(counted(1000));
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), false);
  std::vector<std::vector<float>> targets(3, std::vector<float>(1000));
  auto read = [&, used = std::size_t{0}](std::int64_t offset) mutable {
    return read_into(targets[used++ % 3], converter(ElementType::kInt16, ElementType::kFloat32),
                     {{source, offset, 1, 0, 1000, 0, 0}});
  };
  reader.submit({read(0), read(2)});
  reader.submit({read(0)});
  const ReadError shorter = read_error(reader);
  CHECK(contains(shorter.what(), file.path() + " ends at byte 2000, before byte 2002"));
  CHECK(contains(shorter.what(), "shorter than"));
  CHECK_EQ(shorter.index, 1);
  CHECK_EQ(wait(reader)[0], 0);  // later requests are not affected
  CHECK_EQ(::truncate(file.path().c_str(), 100), 0);
  reader.submit({read(0)});
  CHECK(contains(message(reader), "ends at byte 100, before byte 2000 that was to be read: it was truncated"));
}

TEST(a_strict_file_must_stay_as_it_is) {
  std::array<std::vector<float>, 2> targets = {std::vector<float>(10), std::vector<float>(10)};
  const auto strict_read = [&](SlabReader& reader, const File& file, bool strict) {
    const std::int64_t source = reader.add_file(file.path(), strict);
    return read_into(targets[strict ? 1 : 0], converter(ElementType::kInt16, ElementType::kFloat32),
                     {{source, 0, 1, 0, 10, 0, 0}});
  };
  const auto touch = [](const File& file, time_t seconds) {
    const std::array<timespec, 2> times = {timespec{.tv_sec = seconds, .tv_nsec = 0},
                                           {.tv_sec = seconds, .tv_nsec = 5}};
    CHECK_EQ(::utimensat(AT_FDCWD, file.path().c_str(), times.data(), 0), 0);
  };
  for (const std::string how : {"written", "longer", "replaced", "removed"}) {
    const File file(counted(10));
    const File other(counted(10));
    touch(file, 500);
    touch(other, 500);
    SlabReader reader;
    const SlabRead lenient = strict_read(reader, file, false);
    const SlabRead strict = strict_read(reader, file, true);
    reader.submit({lenient, strict});
    CHECK_EQ(wait(reader).size(), 2U);
    if (how == "written") touch(file, 501);
    if (how == "longer") CHECK_EQ(::truncate(file.path().c_str(), 100), 0);
    if (how == "replaced") CHECK_EQ(std::rename(other.path().c_str(), file.path().c_str()), 0);
    if (how == "removed") CHECK_EQ(::unlink(file.path().c_str()), 0);
    reader.submit({lenient, strict});
    const ReadError error = read_error(reader);
    CHECK(contains(error.what(), file.path() + " changed while it was read"));
    CHECK_EQ(error.index, 1);
    reader.submit({lenient});
    CHECK_EQ(wait(reader).size(), 1U);
  }
}

TEST(what_cannot_be_opened_throws) {
  SlabReader reader;
  CHECK_THROWS(reader.add_file("/does/not/exist", true), std::system_error);
  CHECK_THROWS(reader.add_file(std::filesystem::temp_directory_path().string(), true), std::system_error);
  CHECK_THROWS(reader.add_file("/dev/null", true), std::system_error);
  const File file(counted(3));
  CHECK_THROWS(reader.add_file(file.path() + std::string(1, '\0') + "more", true), std::invalid_argument);
}

TEST(reads_of_no_elements_may_have_many_pieces) {
  const File file(counted(1000));
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), true);
  std::vector<float> some(1);
  SlabRead none = read_into(some, converter(ElementType::kInt16, ElementType::kFloat32), {});
  none.numel = 0;
  for (int i = 0; i < 500; ++i) none.pieces.push_back({source, 0, i % 2, 4, 1 - i % 2, 0, 1});
  some[0] = 7;
  const SlabRead one =
      read_into(some, converter(ElementType::kInt16, ElementType::kFloat32), {{source, 2, 1, 0, 1, 0, 0}});
  for (const std::vector<SlabRead>& reads : {std::vector<SlabRead>{none}, {none, one}, {one, none}, {none, none}}) {
    reader.submit(reads);
    CHECK_EQ(wait(reader).size(), reads.size());
  }
  CHECK_EQ(some[0], 31.0F);
}

// Fields that a piece does not use may hold anything: nothing is computed from them.
TEST(distances_of_single_rows_may_be_extreme) {
  const std::vector<std::int16_t> values = counted(1000);
  const File file(values);
  SlabReader reader;
  const std::int64_t sources[] = {reader.add_file(file.path(), true),
                                  reader.add_memory(reinterpret_cast<std::uintptr_t>(values.data()))};
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
  for (const std::int64_t source : sources) {
    for (const std::int64_t extreme : {kMost, kLeast, kLeast + 1, -kMost / 2, kMost / 4}) {
      std::vector<float> target(500, -1.0F);
      reader.submit({read_into(target, converter(ElementType::kInt16, ElementType::kFloat32),
                               {{source, 20, 1, extreme, 500, 0, extreme},
                                {source, extreme, 0, extreme, extreme == kMost ? kMost : 1, extreme, extreme},
                                {source, extreme, extreme == kMost ? kMost : 1, extreme, 0, extreme, extreme}})});
      wait(reader);
      for (std::size_t i = 0; i < target.size(); ++i) CHECK_EQ(target[i], static_cast<float>(values[i + 10]));
    }
  }
}

TEST(pieces_that_do_not_fit_are_refused) {
  const File file(counted(1000));
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), true);
  std::vector<float> target(100);
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  const std::vector<Piece> wrong = {
      {source + 1, 0, 1, 0, 1, 0, 0}, {-1, 0, 1, 0, 1, 0, 0},          {source, -1, 1, 0, 1, 0, 0},
      {source, 2, 3, -2, 1, 0, 1},    {source, 0, -1, 0, 1, 0, 0},     {source, 0, 1, 0, -1, 0, 0},
      {source, 0, 1, 0, 101, 0, 0},   {source, 0, 1, 0, 1, 100, 0},    {source, 0, 2, 0, 1, 0, 100},
      {source, 0, 2, 0, 1, 0, -1},    {source, 0, kHuge, 2, 1, 0, 0},  {source, 0, 2, kHuge, 1, 0, 1},
      {source, kHuge, 1, 0, 1, 0, 0}, {source, 0, 1, 0, kHuge, 0, 0},  {source, 0, 2, 0, 1, kHuge, 1},
      {source, 0, 2, 0, 1, 0, kHuge}, {source, 0, kHuge, 2, 50, 0, 0},
  };
  for (const Piece& piece : wrong) {
    const SlabRead read = read_into(target, converter(ElementType::kInt16, ElementType::kFloat32), {piece});
    CHECK_THROWS(reader.submit({read}), std::invalid_argument);
  }
  SlabRead read = read_into(target, converter(ElementType::kInt16, ElementType::kFloat32), {});
  for (const std::int64_t numel : {std::int64_t{-1}, kHuge, std::numeric_limits<std::int64_t>::min()}) {
    read.numel = numel;
    CHECK_THROWS(reader.submit({read}), std::invalid_argument);
  }
  CHECK_THROWS(reader.submit({}), std::invalid_argument);
  CHECK_THROWS(wait(reader), std::runtime_error);  // nothing was queued
}

TEST(closing_does_not_wait_for_the_end_of_a_request) {
  const File file(counted(10));
  const std::int64_t numel = std::int64_t{1} << 34;  // hours of reading one element, into memory that does not exist
  void* memory = ::mmap(nullptr, static_cast<std::size_t>(numel), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED);
  SlabReader reader;
  const std::int64_t source = reader.add_file(file.path(), false);
  reader.submit({{.convert = converter(ElementType::kInt16, ElementType::kBool),
                  .pieces = {{source, 0, numel, 0, 1, 0, 1}},
                  .to = static_cast<std::byte*>(memory),
                  .numel = numel}});
  const auto start = std::chrono::steady_clock::now();
  CHECK(!reader.wait(std::chrono::milliseconds(5)));
  reader.close();
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
  ::munmap(memory, static_cast<std::size_t>(numel));
}

TEST(closing_in_the_middle_ends_threads_and_closes_files) {
  const int before = descriptors();
  constexpr std::int64_t kNumel = 300'000;
  const File file(counted(kNumel));
  std::vector<std::vector<float>> targets(20, std::vector<float>(kNumel));
  const auto start = [&](SlabReader& reader) {
    const std::int64_t source = reader.add_file(file.path(), true);
    for (std::vector<float>& target : targets) {
      reader.submit({read_into(target, converter(ElementType::kInt16, ElementType::kFloat32),
                               {{source, 0, kNumel / 2, 4, 1, 0, 2}})});
    }
    wait(reader);
  };
  {
    SlabReader destroyed;
    start(destroyed);
  }
  SlabReader reader;
  start(reader);
  CHECK(descriptors() > before);
  bool ended = false;
  std::thread waiting([&] {
    try {
      while (true) wait(reader);
    } catch (const std::runtime_error&) {  // all were read, or close() was faster
      ended = true;
    }
  });
  reader.close();
  waiting.join();
  CHECK(ended);
  reader.close();
  CHECK_EQ(descriptors(), before);
  CHECK_THROWS(reader.submit({}), std::runtime_error);
  CHECK_THROWS(reader.add_memory(0), std::runtime_error);
  CHECK_THROWS(wait(reader), std::runtime_error);
}

}  // namespace fastseq
