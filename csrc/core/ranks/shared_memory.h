// Memory that other processes of this machine can map: anonymous files (memfd) that peers open through /proc. They
// never appear in a file system, so nothing is left behind, and /dev/shm's size does not matter. Outside Linux it is
// POSIX shared memory: its pages are not reserved, and a killed process leaves its name behind.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>

namespace fastseq {

class SharedMemory {
 public:
  // New zeroed memory with reserved pages: lack of room is reported here, not by a signal at first touch.
  static std::optional<SharedMemory> create(std::size_t bytes);
  // The memory that process `pid` created as descriptor `fd`; none if this process may not open it, or if it is not
  // such memory of `bytes`: in another container the same pid is another process.
  static std::optional<SharedMemory> open(int pid, int fd, std::size_t bytes);

  std::byte* data() const { return mapping_.get(); }
  std::size_t size() const { return bytes_; }
  // Peers open it by this descriptor, until close_descriptor.
  int descriptor() const;
  // Existing mappings stay, but no process can open it any more.
  void close_descriptor() { file_.reset(); }
  // The mapping alone, which lives as long as this pointer.
  std::shared_ptr<std::byte> mapping() const { return mapping_; }

 private:
  static std::optional<SharedMemory> map(int fd, std::size_t bytes);

  std::shared_ptr<std::byte> mapping_;
  std::size_t bytes_ = 0;
  std::shared_ptr<int> file_;
};

}  // namespace fastseq
