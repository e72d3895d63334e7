// Fills buffers from pieces of files and of memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "core/elements.h"
#include "core/source_file.h"

namespace fastseq {

// `steps` rows of `numel` elements that follow each other in the source; `to` and `to_step` count elements.
struct Piece {
  std::int64_t source;  // number from add_file or add_memory
  std::int64_t offset;  // in bytes, in the source
  std::int64_t steps;
  std::int64_t step_bytes;  // from row to row in the source
  std::int64_t numel;
  std::int64_t to;
  std::int64_t to_step;
};

// Fills a buffer of `numel` elements from pieces that don't overlap there. What they don't cover becomes 0.
struct SlabRead {
  ElementConverter convert;
  std::vector<Piece> pieces;
  std::byte* to;
  std::int64_t numel;
};

struct Source {
  std::unique_ptr<SourceFile> file;  // or none:
  std::uintptr_t address = 0;
  std::int64_t used = 0;  // by which request last
};

// What ends a read early.
struct Stopped : std::exception {};

class Gatherer {
 public:
  // Throws Stopped, within one call of the system, once `stop` is set.
  explicit Gatherer(const std::atomic<bool>& stop) : stop_(stop), scratch_(new Scratch) {}

  // Carries out a read, whose pieces have been checked; `sources` are those of its pieces. Returns the number of
  // non-finite values.
  std::int64_t gather(const SlabRead& read, std::span<const Source* const> sources);

 private:
  // Bytes that are read at once: what is looked at or converted afterwards is still in the second-level cache.
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
  // What is being read, and whether the system was told.
  const SlabRead* read_ = nullptr;
  std::span<const Source* const> sources_;
  bool ahead_ = false;
};

}  // namespace fastseq
