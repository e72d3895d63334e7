#include "core/reader/gatherer.h"

#include <algorithm>
#include <cstring>

namespace fastseq {

namespace {

// Gaps between rows, in bytes, that are read rather than skipped, because a call costs as much as copying them; and the
// length of rows that are read directly into place.
constexpr std::int64_t kGap = 4096;
constexpr std::int64_t kLongRow = 8192;

}  // namespace

std::int64_t Gatherer::gather(Job& job, const Part& part) {
  job_ = &job;
  const SlabRead& read = job.read;
  if (part.clears) std::memset(read.to, 0, static_cast<std::size_t>(read.numel * read.convert.to_size()));
  std::int64_t count = 0;
  for (std::size_t i = part.first; i < part.last; ++i) count += gather_piece(read.pieces[i], *job.sources[i]);
  return count;
}

std::int64_t Gatherer::gather_piece(Piece piece, const Source& source) {
  const ElementConverter& convert = job_->read.convert;
  if (piece.step_bytes == piece.numel * convert.from_size() && piece.to_step == piece.numel &&
      convert.joins(piece.numel)) {
    piece.numel *= piece.steps;
    piece.steps = 1;
  }
  if (piece.steps == 0 || piece.numel == 0) return 0;
  const std::int64_t row = piece.numel * convert.from_size();
  const std::int64_t to_stride = piece.to_step * convert.to_size();
  std::byte* to = job_->read.to + piece.to * convert.to_size();
  // Number of rows read together; from a file, with the gaps between them.
  std::int64_t group = 1;
  if (!source.file) {
    group = std::max(kBlock / row, std::int64_t{1});
  } else if (piece.step_bytes >= row && piece.step_bytes <= row + kGap && row < kBlock) {
    group = (kBlock - row) / piece.step_bytes + 1;
  }
  std::int64_t count = 0;
  if (row > kBlock || (source.file && convert.copies() && (group == 1 || row >= kLongRow))) {
    for (std::int64_t step = 0; step < piece.steps; ++step) {
      count += gather_row(source, piece.offset + step * piece.step_bytes, piece.numel, to + step * to_stride);
    }
    return count;
  }
  for (std::int64_t step = 0; step < piece.steps; step += group) {
    const std::int64_t rows = std::min(group, piece.steps - step);
    const std::byte* from = fetch(source, piece.offset + step * piece.step_bytes, (rows - 1) * piece.step_bytes + row);
    count += convert.convert_rows(from, piece.step_bytes, rows, piece.numel, to + step * to_stride, to_stride);
  }
  return count;
}

// One row of any length, in blocks.
std::int64_t Gatherer::gather_row(const Source& source, std::int64_t offset, std::int64_t numel, std::byte* to) {
  const ElementConverter& convert = job_->read.convert;
  const std::int64_t block = kBlock / convert.from_size();
  std::int64_t count = 0;
  for (std::int64_t done = 0; done < numel; done += block) {
    const std::int64_t some = std::min(block, numel - done);
    const std::int64_t bytes = some * convert.from_size();
    const std::int64_t start = offset + done * convert.from_size();
    std::byte* target = to + done * convert.to_size();
    if (source.file && convert.copies()) {
      read_file(*source.file, target, bytes, start);
      count += convert(target, some, target);
    } else {
      count += convert(fetch(source, start, bytes), some, target, done);
    }
  }
  return count;
}

// Bytes of a source: in memory, or read into the scratch memory.
const std::byte* Gatherer::fetch(const Source& source, std::int64_t offset, std::int64_t bytes) {
  if (!source.file) {
    check_stop();
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses come as numbers
    return reinterpret_cast<const std::byte*>(source.address + static_cast<std::uintptr_t>(offset));
  }
  read_file(*source.file, scratch_->bytes, bytes, offset);
  return scratch_->bytes;
}

void Gatherer::read_file(const SourceFile& file, std::byte* to, std::int64_t bytes, std::int64_t offset) {
  check_stop();
  if (!file.read(to, bytes, offset) && !job_->told.exchange(true)) read_ahead();
}

// Called at the first bytes that come from the disk: asks for all the others, to be read meanwhile.
void Gatherer::read_ahead() {
  for (std::size_t i = 0; i < job_->sources.size(); ++i) {
    const Piece& piece = job_->read.pieces[i];
    const SourceFile* file = job_->sources[i]->file.get();
    if (file == nullptr || piece.steps == 0 || piece.numel == 0) continue;  // 0 bytes would mean the whole file
    const std::int64_t row = piece.numel * job_->read.convert.from_size();
    if (piece.step_bytes >= row && piece.step_bytes <= row + kGap) {
      file->read_ahead((piece.steps - 1) * piece.step_bytes + row, piece.offset);
      continue;
    }
    for (std::int64_t step = 0; step < piece.steps; ++step) {
      check_stop();
      file->read_ahead(row, piece.offset + step * piece.step_bytes);
    }
  }
}

void Gatherer::check_stop() const {
  if (stop_.load(std::memory_order_relaxed)) throw Stopped{};
}

}  // namespace fastseq
