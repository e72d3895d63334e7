// A file read piece by piece, while others may change it.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastseq {

class ReadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;

  std::int64_t index = 0;  // the read of its request that failed
};

class SourceFile {
 public:
  // Throws std::system_error if `path` cannot be opened or is no regular file, std::invalid_argument if it is not a
  // path.
  SourceFile(const std::string& path, bool strict);
  ~SourceFile();
  SourceFile(const SourceFile&) = delete;
  SourceFile& operator=(const SourceFile&) = delete;

  // Reads all bytes [offset, offset + count), or throws ReadError. Returns whether they were in the page cache, as far
  // as the file system reports it.
  bool read(std::byte* to, std::int64_t count, std::int64_t offset) const;
  // Asks the system, if possible, to read these bytes into the page cache; does not wait.
  void read_ahead(std::int64_t count, std::int64_t offset) const;
  // Throws ReadError if the file is strict and its path no longer has the opened file's size, time and inode.
  void check_unchanged() const;

 private:
  std::string path_;
  bool strict_;
  int descriptor_;
  mutable std::atomic<bool> can_tell_ = true;  // whether the system reports what is in the page cache
  struct stat opened_{};
};

}  // namespace fastseq
