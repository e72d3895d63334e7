// Checks of a read, and its division among threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/reader/gatherer.h"

namespace fastseq {

// Throws std::invalid_argument for a buffer that no memory could hold.
void check_size(const SlabRead& read);

// Throws std::invalid_argument unless the piece is within its buffer and does not start before its file. Its extents
// are then small enough to add some of them; unused distances between rows are set to those of contiguous rows.
void check_piece(Piece& piece, const SlabRead& read, bool in_file);

// The least cost worth waking a thread for, and the largest cost distinguished, in bytes copied in the same time.
constexpr std::int64_t kPartCost = std::int64_t{256} * 1024;
constexpr std::int64_t kMostCost = std::int64_t{1} << 60;

// Appends the parts of `read`, splitting its pieces; returns its cost.
std::int64_t add_parts(std::vector<Part>& parts, std::size_t job, SlabRead& read, bool in_files);

}  // namespace fastseq
