#include "core/reader/read_parts.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastseq {

namespace {

// Most parts of a piece, and bytes whose copying takes as long as a system call.
constexpr std::int64_t kParts = 16;
constexpr std::int64_t kCall = 4096;

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

// Costs of a row and of a piece, in bytes copied in the same time; `call` is the cost of each separate one.
std::int64_t row_cost(const Piece& piece, std::int64_t size, std::int64_t call) {
  return std::max(piece.numel * size, std::min(std::abs(piece.step_bytes), call));
}

std::int64_t piece_cost(const Piece& piece, std::int64_t size, std::int64_t call) {
  std::int64_t cost = 0;
  if (__builtin_mul_overflow(piece.steps, row_cost(piece, size, call), &cost)) return kMostCost;
  return std::clamp(cost, call, kMostCost);
}

// Splits large pieces into several of fewer steps.
void cut_pieces(std::vector<Piece>& pieces, std::int64_t size, std::int64_t call) {
  std::vector<Piece> cut;
  for (const Piece& piece : pieces) {
    const std::int64_t row = std::max(row_cost(piece, size, call), std::int64_t{1});
    const std::int64_t some = std::max(kPartCost / row, piece.steps / kParts) + 1;
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

void check_size(const SlabRead& read) {
  if (read.numel < 0) throw std::invalid_argument("read: its number of elements must not be negative");
  extent(read.numel, read.convert.to_size(), 0);
}

void check_piece(Piece& piece, const SlabRead& read, bool in_file) {
  if (piece.steps < 0 || piece.numel < 0) refuse("steps and numel must not be negative");
  if (piece.steps == 0 || piece.numel == 0) {
    piece = {.source = piece.source, .offset = 0, .steps = 0, .step_bytes = 0, .numel = 0, .to = 0, .to_step = 0};
    return;
  }
  const std::int64_t row = extent(piece.numel, read.convert.from_size(), 0);
  if (piece.steps == 1) {
    piece.step_bytes = row;
    piece.to_step = piece.numel;
  }
  extent(piece.steps, row, 0);
  const std::int64_t last = extent(piece.steps - 1, piece.step_bytes, extent(1, piece.offset, row));
  if (in_file && (piece.offset < 0 || last < row)) refuse("it starts before its file");
  const std::int64_t to = extent(1, piece.to, 0);
  const std::int64_t to_last = extent(piece.steps - 1, piece.to_step, to);
  if (std::min(to, to_last) < 0 || std::max(to, to_last) + piece.numel > read.numel) {
    refuse("rows of " + std::to_string(piece.numel) + " elements at " + std::to_string(to) + " to " +
           std::to_string(to_last) + " do not fit into a buffer of " + std::to_string(read.numel));
  }
}

std::int64_t add_parts(std::vector<Part>& parts, std::size_t job, SlabRead& read, bool in_files) {
  const std::int64_t call = in_files ? kCall : 0;
  const std::int64_t size = read.convert.from_size();
  std::int64_t covered = 0;  // elements, at most those that exist
  std::int64_t cost = 0;
  for (const Piece& piece : read.pieces) {
    covered = std::min(covered + piece.steps * piece.numel, read.numel);
    cost = std::min(cost + piece_cost(piece, size, call), kMostCost);
  }
  const bool clears = covered < read.numel;
  if (clears || read.numel == 0 || cost < 2 * kPartCost) {
    parts.push_back({job, 0, read.pieces.size(), clears});
    return cost;
  }
  cut_pieces(read.pieces, size, call);
  std::size_t first = 0;
  std::int64_t some = 0;
  for (std::size_t last = 1; last <= read.pieces.size(); ++last) {
    some += piece_cost(read.pieces[last - 1], size, call);
    if (some >= kPartCost || last == read.pieces.size()) {
      parts.push_back({job, first, last, false});
      first = last;
      some = 0;
    }
  }
  return cost;
}

}  // namespace fastseq
