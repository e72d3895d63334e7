// Undoes filters of HDF5 on the bytes of a chunk. The formats are those of the HDF5 library's own filters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastseq {

// Shuffle: byte j of element i is at j * elements + i. Bytes after the last whole element stay where they are.
// `to` has the size of `from` and does not overlap it.
void unshuffle(std::span<const std::byte> from, std::size_t item, std::span<std::byte> to);

// The checksum that HDF5 appends: of big-endian words of 16 bits; an odd last byte is the high one of a word.
std::uint32_t fletcher32(std::span<const std::byte> bytes);

// Scale-offset: integers, or floats times a power of ten, less their minimum, in as few bits as hold them all.
// `parameters` are the filter's in the dataset. Throws std::invalid_argument for parameters that it does not know, for
// a chunk that is too short, and unless `to` has room for just the elements.
void undo_scale_offset(std::span<const std::byte> from, std::span<const std::uint32_t> parameters,
                       std::span<std::byte> to);

}  // namespace fastseq
