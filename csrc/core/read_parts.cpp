#include "core/read_parts.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastseq {

namespace {

// Bytes that are worth a thread of their own, and parts that a piece is cut into at most.
constexpr std::int64_t kPart = std::int64_t{256} * 1024;
constexpr std::int64_t kParts = 16;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("piece: " + what); }

// a * b + c, small enough for sums of some of them.
std::int64_t extent(std::int64_t a, std::int64_t b, std::int64_t c) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 60;
  std::int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || __builtin_add_overflow(result, c, &result) || result >= kLimit ||
      result <= -kLimit) {
    refuse("its extent overflows");
  }
  return result;
}

// Replaces pieces of many bytes by several of fewer steps.
void cut_pieces(std::vector<Piece>& pieces, std::int64_t size) {
  std::vector<Piece> cut;
  for (const Piece& piece : pieces) {
    const std::int64_t row = std::max(piece.numel * size, std::int64_t{1});
    const std::int64_t some = std::max(kPart / row, piece.steps / kParts) + 1;
    for (std::int64_t step = 0; step < piece.steps; step += some) {
      cut.push_back(piece);
      cut.back().offset += step * piece.step_bytes;
      cut.back().to += step * piece.to_step;
      cut.back().steps = std::min(piece.steps - step, some);
    }
  }
  pieces = std::move(cut);
}

}  // namespace

void check_piece(const Piece& piece, const SlabRead& read, bool in_file) {
  if (piece.steps < 0 || piece.numel < 0) refuse("steps and numel must not be negative");
  if (piece.steps == 0 || piece.numel == 0) return;
  const std::int64_t row = extent(piece.numel, read.convert.from_size(), 0);
  extent(piece.steps, row, 0);
  const std::int64_t last = extent(piece.steps - 1, piece.step_bytes, extent(1, piece.offset, row));
  if (in_file && (piece.offset < 0 || last < row)) refuse("it begins before its file");
  const std::int64_t to = extent(1, piece.to, 0);
  const std::int64_t to_last = extent(piece.steps - 1, piece.to_step, to);
  if (std::min(to, to_last) < 0 || std::max(to, to_last) + piece.numel > read.numel) {
    refuse("rows of " + std::to_string(piece.numel) + " elements at " + std::to_string(to) + " to " +
           std::to_string(to_last) + " do not fit into a buffer of " + std::to_string(read.numel));
  }
}

bool add_parts(std::vector<Part>& parts, std::size_t job, SlabRead& read) {
  std::int64_t covered = 0;  // elements, no more than there are
  for (const Piece& piece : read.pieces) covered = std::min(covered + piece.steps * piece.numel, read.numel);
  const std::int64_t size = read.convert.from_size();
  const bool clears = covered < read.numel;
  if (clears || covered < 2 * kPart / size) {
    parts.push_back({job, 0, read.pieces.size(), clears});
    return covered >= kPart / size;
  }
  cut_pieces(read.pieces, size);
  std::size_t first = 0;
  std::int64_t numel = 0;
  for (std::size_t last = 1; last <= read.pieces.size(); ++last) {
    numel = std::min(numel + read.pieces[last - 1].steps * read.pieces[last - 1].numel, kPart);
    if (numel >= kPart / size || last == read.pieces.size()) {
      parts.push_back({job, first, last, false});
      first = last;
      numel = 0;
    }
  }
  return true;
}

}  // namespace fastseq
