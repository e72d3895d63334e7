// Values from one floating-point type to another, rounded to nearest even.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace fastseq {

// to[i] = from[i]; neither overlaps the other.
void convert(const void* from, DType from_dtype, std::int64_t numel, void* to, DType to_dtype);

}  // namespace fastseq
