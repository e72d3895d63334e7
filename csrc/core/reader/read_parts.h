// What must hold of a read, and how it is cut for several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/reader/gatherer.h"

namespace fastseq {

// Throws std::invalid_argument for a buffer that no memory could hold.
void check_size(const SlabRead& read);

// Throws std::invalid_argument unless the piece lies within its buffer and does not begin before its file. Its extents
// are then small enough for sums of some of them; distances between rows that it does not have are set to those of rows
// that follow each other.
void check_piece(Piece& piece, const SlabRead& read, bool in_file);

// What is worth waking a thread for, and the most that is told apart, in bytes that are copied in the same time.
constexpr std::int64_t kPartCost = std::int64_t{256} * 1024;
constexpr std::int64_t kMostCost = std::int64_t{1} << 60;

// Appends the parts of `read`, whose pieces are cut for that; returns what it costs.
std::int64_t add_parts(std::vector<Part>& parts, std::size_t job, SlabRead& read, bool in_files);

}  // namespace fastseq
