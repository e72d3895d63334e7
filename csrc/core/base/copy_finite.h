// Copies that notice infinities and NaNs on the way.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace fastseq {

// to[i] = from[i]; returns whether all values are finite. `to` may be `from`, then it only looks; otherwise the two do
// not overlap.
bool copy_finite(const void* from, std::int64_t numel, DType dtype, void* to);

}  // namespace fastseq
