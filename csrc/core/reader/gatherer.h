// Fills buffers from pieces of files and of memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/elements.h"
#include "core/reader/source_file.h"

namespace fastseq {

// `steps` rows of `numel` consecutive elements of the source; `to` and `to_step` count elements.
struct Piece {
  std::int64_t source;  // number from add_file or add_memory
  std::int64_t offset;  // in bytes, in the source
  std::int64_t steps;
  std::int64_t step_bytes;  // from row to row in the source
  std::int64_t numel;
  std::int64_t to;
  std::int64_t to_step;
};

// Fills a buffer of `numel` elements from pieces that do not overlap there. Elements not covered become 0.
struct SlabRead {
  ElementConverter convert;
  std::vector<Piece> pieces;
  std::byte* to;
  std::int64_t numel;
};

struct Source {
  std::unique_ptr<SourceFile> file;  // null: memory at `address`
  std::uintptr_t address = 0;
  std::int64_t used = 0;  // the last request that used it
};

// One thread's unit of work: pieces [first, last) of a read.
struct Part {
  std::size_t job;
  std::size_t first;
  std::size_t last;
  bool clears;  // whether to fill the buffer with 0 first
};

// A read, and what its threads share.
struct Job {
  explicit Job(SlabRead of) : read(std::move(of)) {}

  SlabRead read;
  std::vector<const Source*> sources;  // sources of its pieces
  std::int64_t count = 0;              // non-finite values
  std::atomic<bool> told = false;      // whether the system was asked to read ahead
};

// Thrown to end a read early.
struct Stopped : std::exception {};

class Gatherer {
 public:
  // Throws Stopped, within one system call, once `stop` is set.
  explicit Gatherer(const std::atomic<bool>& stop) : stop_(stop), scratch_(new Scratch) {}

  // Carries out a part of a job whose pieces have been checked. Returns the number of non-finite values.
  std::int64_t gather(Job& job, const Part& part);

 private:
  // Bytes read at once, so that they are still in the second-level cache when checked or converted.
  static constexpr std::int64_t kBlock = std::int64_t{128} * 1024;
  struct alignas(64) Scratch {
    std::byte bytes[kBlock];
  };

  std::int64_t gather_piece(Piece piece, const Source& source);
  std::int64_t gather_row(const Source& source, std::int64_t offset, std::int64_t numel, std::byte* to);
  const std::byte* fetch(const Source& source, std::int64_t offset, std::int64_t bytes);
  void read_file(const SourceFile& file, std::byte* to, std::int64_t bytes, std::int64_t offset);
  void read_ahead();
  void check_stop() const;

  const std::atomic<bool>& stop_;
  std::unique_ptr<Scratch> scratch_;
  Job* job_ = nullptr;  // the job being read
};

}  // namespace fastseq
