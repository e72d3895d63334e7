#include "core/ranks/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <stdexcept>

#include "check.h"

namespace fastseq {

TEST(memory_is_opened_by_process_and_descriptor) {
  const auto mine = SharedMemory::create(10000);
  if (!mine) throw std::runtime_error("no shared memory");
  const auto same = SharedMemory::open(getpid(), mine->descriptor(), 10000);
  if (!same) throw std::runtime_error("it cannot be opened");
  mine->data()[9999] = std::byte{7};
  CHECK(same->data()[9999] == std::byte{7});
  CHECK(!SharedMemory::open(getpid(), mine->descriptor(), 20000));
}

// In another container, the same pid and descriptor may be something else.
TEST(what_is_no_such_memory_is_not_opened) {
  std::FILE* file = std::tmpfile();
  CHECK(!SharedMemory::open(getpid(), fileno(file), 4096));
  CHECK_EQ(ftruncate(fileno(file), 4096), 0);
  CHECK(!SharedMemory::open(getpid(), fileno(file), 4096));
  std::fclose(file);
#ifdef __linux__
  const int other = memfd_create("other", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK_EQ(ftruncate(other, 4096), 0);
  CHECK(!SharedMemory::open(getpid(), other, 4096));  // its owner may shrink it
  close(other);
#endif
  std::array<int, 2> ends{};
  CHECK_EQ(pipe(ends.data()), 0);
  CHECK(!SharedMemory::open(getpid(), ends[0], 4096));
  close(ends[0]);
  close(ends[1]);
  CHECK(!SharedMemory::open(getpid(), 100000, 4096));
}

TEST(timers_of_the_process_do_not_keep_it_from_having_memory) {
  struct sigaction action{};
  action.sa_handler = [](int) {};
  sigaction(SIGALRM, &action, nullptr);
  itimerval often{};
  often.it_interval.tv_usec = often.it_value.tv_usec = 500;
  setitimer(ITIMER_REAL, &often, nullptr);
  CHECK(SharedMemory::create(std::size_t{64} << 20).has_value());
  often = {};
  setitimer(ITIMER_REAL, &often, nullptr);
}

}  // namespace fastseq
