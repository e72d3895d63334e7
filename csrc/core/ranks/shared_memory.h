// Memory that other processes of this machine can map: anonymous files (memfd) that peers open through /proc. Nothing
// is ever visible in a file system, so nothing is left behind, and /dev/shm's size does not matter. Elsewhere than on
// Linux it is POSIX shared memory, whose pages are not reserved, and whose name a process that is killed leaves behind.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>

namespace fastseq {

class SharedMemory {
 public:
  // New zeroed memory, its pages reserved: a machine without room says so here, not by a signal at first touch.
  static std::optional<SharedMemory> create(std::size_t bytes);
  // The memory that process `pid` created as descriptor `fd`; nothing if this process may not open it, or if that is no
  // such memory of `bytes`: in another container the same pid is another process.
  static std::optional<SharedMemory> open(int pid, int fd, std::size_t bytes);

  std::byte* data() const { return mapping_.get(); }
  std::size_t size() const { return bytes_; }
  // By which peers open it, until close_descriptor.
  int descriptor() const;
  // The mappings stay, nobody new can open it.
  void close_descriptor() { file_.reset(); }
  // The mapping alone: it lives as long as this pointer.
  std::shared_ptr<std::byte> mapping() const { return mapping_; }

 private:
  static std::optional<SharedMemory> map(int fd, std::size_t bytes);

  std::shared_ptr<std::byte> mapping_;
  std::size_t bytes_ = 0;
  std::shared_ptr<int> file_;
};

}  // namespace fastseq
