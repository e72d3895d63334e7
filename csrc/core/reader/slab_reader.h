// Reads pieces of files and memory into given buffers, in its own threads.
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

// A request is a list of reads. Two threads work together on the oldest request, then on the next, so pending requests
// must not fill the same buffers; a caller that waits for a request takes part in it. Sources and buffers must stay
// until a request's result was returned or close() returned. Threads are started and woken only if that pays: for many
// bytes, or if the last request had to wait for the disk. After a fork, the child can only destroy its copy of a reader
// that had requests. One thread at a time may call the methods, but close() may be called while another one waits.
class SlabReader {
 public:
  SlabReader();
  ~SlabReader();
  SlabReader(const SlabReader&) = delete;
  SlabReader& operator=(const SlabReader&) = delete;

  // Add a source and return its number. A file is opened at once (std::system_error); a strict one must not change
  // later.
  std::int64_t add_file(const std::string& path, bool strict);
  std::int64_t add_memory(std::uintptr_t address);

  // Queues a request. Throws std::invalid_argument, and queues nothing, if a piece does not fit into its buffer or its
  // source is unknown.
  void submit(std::vector<SlabRead> reads);

  // Waits for the oldest pending request; returns the number of non-finite values per read, or nothing after `limit`:
  // then wait again. Throws this request's error (ReadError for files); later requests are not affected.
  std::optional<std::vector<std::int64_t>> wait(std::chrono::milliseconds limit);

  // Drops the queue, within one system read, ends the threads and closes the files. Can be called twice.
  void close();

 private:
  struct State;

  State& usable() const;

  std::unique_ptr<State> state_;
};

}  // namespace fastseq
