// Reads pieces of files and of memory into given buffers, in threads of its own.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/reader/gatherer.h"

namespace fastseq {

// A request is a list of reads. Two threads work on the oldest one together, then on the next, so requests
// that wait must not fill the same buffers; who waits for a request takes part in it. Sources and buffers must stay
// until a request's result came or close() returned. The threads start, and are woken, where that is worth it: for many
// bytes, or when the last request had to wait for the disk. After a fork, the child can only destroy its copy of a
// reader that had requests. One thread at a time may call what is here, but close() may be called while another one
// waits.
class SlabReader {
 public:
  SlabReader();
  ~SlabReader();
  SlabReader(const SlabReader&) = delete;
  SlabReader& operator=(const SlabReader&) = delete;

  // Numbers of new sources. A file is opened at once (std::system_error); a strict one must not change from then on.
  std::int64_t add_file(const std::string& path, bool strict);
  std::int64_t add_memory(std::uintptr_t address);

  // Queues a request. Throws std::invalid_argument, and queues nothing, if a piece does not fit into its buffer or its
  // source is not known.
  void submit(std::vector<SlabRead> reads);

  // Result of the oldest request that was not waited for: the number of non-finite values per read. Nothing if it takes
  // longer than `limit`: then wait again. Throws what went wrong in this request (ReadError for files); later requests
  // are done all the same.
  std::optional<std::vector<std::int64_t>> wait(std::chrono::milliseconds limit);

  // Drops what is queued, within one read of the system, ends the threads and closes the files. Can be called twice.
  void close();

 private:
  struct State;

  State& usable() const;

  std::unique_ptr<State> state_;
};

}  // namespace fastseq
