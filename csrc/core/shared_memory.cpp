#include "core/shared_memory.h"

#include <string>

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastseq {

int SharedMemory::descriptor() const { return file_ ? *file_ : -1; }

#ifdef __linux__

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
  const int fd = memfd_create("fastseq", MFD_CLOEXEC);
  if (fd < 0) return std::nullopt;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 || posix_fallocate(fd, 0, static_cast<off_t>(bytes)) != 0) {
    close(fd);
    return std::nullopt;
  }
  return map(fd, bytes);
}

std::optional<SharedMemory> SharedMemory::open(int pid, int fd, std::size_t bytes) {
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fd);
  const int opened = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (opened < 0) return std::nullopt;
  std::optional<SharedMemory> memory = map(opened, bytes);
  if (memory) memory->close_descriptor();
  return memory;
}

#else

std::optional<SharedMemory> SharedMemory::create(std::size_t) { return std::nullopt; }
std::optional<SharedMemory> SharedMemory::open(int, int, std::size_t) { return std::nullopt; }

#endif

}  // namespace fastseq
