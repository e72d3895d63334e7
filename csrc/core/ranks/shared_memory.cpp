#include "core/ranks/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <string>
#include <utility>

#include "core/base/platform.h"

namespace fastseq {

int SharedMemory::descriptor() const { return file_ ? *file_ : -1; }

#if FASTSEQ_HAS_MEMFD

namespace {

// A file with these seals cannot shrink, so reading it raises no signal.
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Reserves pages. On older kernels a signal (of a timer, say) undoes all that is done so far, so signals are blocked
// until a piece is done.
bool reserve(int fd, std::size_t bytes) {
  constexpr std::size_t kPiece = std::size_t{256} << 20;
  for (std::size_t first = 0; first < bytes; first += kPiece) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int code =
        posix_fallocate(fd, static_cast<off_t>(first), static_cast<off_t>(std::min(kPiece, bytes - first)));
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (code != 0) return false;
  }
  return true;
}

bool is_ours(int fd, std::size_t bytes) {
  struct stat status{};
  const int seals = fcntl(fd, F_GET_SEALS);  // -1 if it cannot be sealed
  return seals >= 0 && (seals & kSeals) == kSeals && fstat(fd, &status) == 0 && std::cmp_equal(status.st_size, bytes);
}

}  // namespace

std::optional<SharedMemory> SharedMemory::map(int fd, std::size_t bytes) {
  SharedMemory memory;
  memory.bytes_ = bytes;
  memory.file_ = std::shared_ptr<int>(new int(fd), [](const int* file) {
    close(*file);
    delete file;
  });
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return std::nullopt;
  memory.mapping_ = {static_cast<std::byte*>(address), [bytes](std::byte* start) { munmap(start, bytes); }};
  return memory;
}

std::optional<SharedMemory> SharedMemory::create(std::size_t bytes) {
  const int fd = memfd_create("fastseq", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return std::nullopt;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 || !reserve(fd, bytes) || fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    close(fd);
    return std::nullopt;
  }
  return map(fd, bytes);
}

std::optional<SharedMemory> SharedMemory::open(int pid, int fd, std::size_t bytes) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  const int opened = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (opened < 0) return std::nullopt;
  if (!is_ours(opened, bytes)) {
    close(opened);
    return std::nullopt;
  }
  std::optional<SharedMemory> memory = map(opened, bytes);
  if (memory) memory->close_descriptor();
  return memory;
}

#else

// POSIX shared memory: peers open it by a name, made of the process and a number, which serves as the "descriptor".

namespace {

std::string name_of(int pid, int number) { return "/fastseq-" + std::to_string(pid) + "-" + std::to_string(number); }

}  // namespace

std::optional<SharedMemory> SharedMemory::map(int fd, std::size_t bytes) {
  struct stat now{};
  const bool whole = fstat(fd, &now) == 0 && std::cmp_greater_equal(now.st_size, bytes);
  void* address = whole ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  if (address == MAP_FAILED) return std::nullopt;
  SharedMemory memory;
  memory.bytes_ = bytes;
  memory.mapping_ = {static_cast<std::byte*>(address), [bytes](std::byte* start) { munmap(start, bytes); }};
  return memory;
}

std::optional<SharedMemory> SharedMemory::create(std::size_t bytes) {
  static std::atomic<int> next = 0;
  const int number = next++;
  const std::string name = name_of(getpid(), number);
  const int fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, S_IRUSR | S_IWUSR);
  if (fd < 0) return std::nullopt;
  const std::shared_ptr<int> file(new int(number), [name](const int* own) {
    shm_unlink(name.c_str());
    delete own;
  });
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    close(fd);
    return std::nullopt;
  }
  std::optional<SharedMemory> memory = map(fd, bytes);
  if (memory) memory->file_ = file;
  return memory;
}

std::optional<SharedMemory> SharedMemory::open(int pid, int fd, std::size_t bytes) {
  const int opened = shm_open(name_of(pid, fd).c_str(), O_RDWR, 0);
  return opened < 0 ? std::nullopt : map(opened, bytes);
}

#endif

}  // namespace fastseq
