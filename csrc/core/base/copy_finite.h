// Copies that check for infinities and NaNs.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace fastseq {

// to[i] = from[i]; returns whether all values are finite. If `to` is `from`, it only checks; otherwise the two must not
// overlap.
bool copy_finite(const void* from, std::int64_t numel, DType dtype, void* to);

}  // namespace fastseq
