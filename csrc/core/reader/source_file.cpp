#include "core/reader/source_file.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "core/base/platform.h"

namespace fastseq {

namespace {

std::string describe(int error_number) { return std::generic_category().message(error_number); }

// Whether both have the same time of last modification.
bool same_time(const struct stat& a, const struct stat& b) {
#if FASTSEQ_HAS_NANOSECONDS
  return a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
#else
  return a.st_mtime == b.st_mtime;
#endif
}

// A path for the system; one with a NUL is refused, as the system would cut it off there.
std::string checked_path(const std::string& path) {
  if (path.find('\0') != std::string::npos) throw std::invalid_argument("path: it holds a NUL character");
  return std::filesystem::absolute(path).string();
}

}  // namespace

// The path is made absolute because the program may change its working directory; O_NONBLOCK is for pipes, which would
// otherwise not open until somebody writes to them.
SourceFile::SourceFile(const std::string& path, bool strict)
    : path_(checked_path(path)),
      strict_(strict),
      descriptor_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), path);
  int error_number = ::fstat(descriptor_, &opened_) == 0 ? 0 : errno;
  if (error_number == 0 && S_ISDIR(opened_.st_mode)) error_number = EISDIR;
  if (error_number == 0 && !S_ISREG(opened_.st_mode)) error_number = ESPIPE;
  if (error_number != 0) {
    ::close(descriptor_);
    throw std::system_error(error_number, std::generic_category(), path);
  }
}

SourceFile::~SourceFile() { ::close(descriptor_); }

bool SourceFile::read(std::byte* to, std::int64_t count, std::int64_t offset) const {
  std::int64_t done = 0;
  bool cached = true;  // unless the system says otherwise
#if FASTSEQ_HAS_PREADV2
  if (can_tell_.load(std::memory_order_relaxed)) {
    const iovec target = {.iov_base = to, .iov_len = static_cast<std::size_t>(count)};
    const ssize_t got = ::preadv2(descriptor_, &target, 1, offset, RWF_NOWAIT);
    if (got > 0) done = got;
    if (got < 0 && errno == EOPNOTSUPP) {
      can_tell_ = false;
    } else {
      cached = done == count;
    }
  }
#endif
  while (done < count) {
    const ssize_t got = ::pread(descriptor_, to + done, static_cast<std::size_t>(count - done), offset + done);
    if (got > 0) {
      done += got;
    } else if (got == 0) {
      struct stat now{};
      const std::int64_t size = ::fstat(descriptor_, &now) == 0 ? now.st_size : offset + done;
      const bool truncated = size < opened_.st_size;
      throw ReadError(path_ + " ends at byte " + std::to_string(size) + ", before byte " +
                      std::to_string(offset + count) + " that was to be read: it " +
                      (truncated ? "was truncated after it was opened" : "is shorter than its description says"));
    } else if (errno != EINTR) {
      const int error_number = errno;
      throw ReadError("bytes " + std::to_string(offset + done) + " to " + std::to_string(offset + count) + " of " +
                      path_ + " cannot be read: " + describe(error_number));
    }
  }
  return cached;
}

void SourceFile::read_ahead([[maybe_unused]] std::int64_t count, [[maybe_unused]] std::int64_t offset) const {
#if FASTSEQ_HAS_FADVISE
  ::posix_fadvise(descriptor_, offset, count, POSIX_FADV_WILLNEED);
#endif
}

void SourceFile::check_unchanged() const {
  if (!strict_) return;
  struct stat now{};
  if (::stat(path_.c_str(), &now) != 0) {
    const int error_number = errno;
    throw ReadError(path_ + " changed while it was read: it no longer exists: " + describe(error_number));
  }
  const char* what = nullptr;
  if (now.st_ino != opened_.st_ino || now.st_dev != opened_.st_dev) {
    what = "another file replaced it";
  } else if (now.st_size != opened_.st_size) {
    what = "its size changed";
  } else if (!same_time(now, opened_)) {
    what = "it was written to";
  }
  if (what != nullptr) throw ReadError(path_ + " changed while it was read: " + what);
}

}  // namespace fastseq
