// What must hold of a read, and how it is cut for several threads.
#pragma once

#include <cstddef>
#include <vector>

#include "core/gatherer.h"

namespace fastseq {

// Throws std::invalid_argument unless the piece lies within its buffer and does not begin before its file; its extents
// are then small enough for sums of some of them.
void check_piece(const Piece& piece, const SlabRead& read, bool in_file);

// Appends the parts of `read`, whose pieces are cut for that; returns whether it is worth several threads.
bool add_parts(std::vector<Part>& parts, std::size_t job, SlabRead& read);

}  // namespace fastseq
