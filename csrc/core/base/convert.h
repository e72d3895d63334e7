// Conversions between floating-point types, rounding to nearest even.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace fastseq {

// to[i] = from[i]; the two must not overlap.
void convert(const void* from, DType from_dtype, std::int64_t numel, void* to, DType to_dtype);

}  // namespace fastseq
