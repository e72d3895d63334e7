#include "core/base/pack.h"

#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/isa.h"
#include "core/base/pieces.h"

namespace fastseq {

namespace {

// Least bytes worth waking a thread for.
constexpr std::int64_t kGrainBytes = 256 * 1024;

template <class T>
void scaled_range(const T* from, std::int64_t count, T scale, T* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] * scale;
}

template <class T>
void scale_copy(const T* from, std::int64_t count, double scale, T* to) {
  if (scale == 1.0) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
  } else if constexpr (std::is_floating_point_v<T>) {
    best<scaled_range<T>>(from, count, static_cast<T>(scale), to);
  } else {
    const auto factor = static_cast<float>(scale);
    for (std::int64_t i = 0; i < count; ++i) to[i] = T(static_cast<float>(from[i]) * factor);
  }
}

}  // namespace

void pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, const FlatLayout& layout,
          DType dtype, double scale, void* flat, ParallelFor parallel_for) {
  zero_gaps(numels, layout, dtype, flat);
  const std::vector<std::int64_t> starts = element_starts(numels);
  dispatch(dtype, [&]<class T>(Type<T>) {
    auto* out = static_cast<T*>(flat);
    auto body = [&](std::int64_t begin, std::int64_t end) {
      for_pieces(starts, begin, end, [&](std::size_t i, std::int64_t first, std::int64_t last) {
        scale_copy(static_cast<const T*>(tensors[i]) + first, last - first, scale, out + layout.offsets[i] + first);
      });
    };
    for_ranges(parallel_for, starts.back(), kGrainBytes / static_cast<std::int64_t>(sizeof(T)), body);
  });
}

void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, ParallelFor parallel_for) {
  const std::vector<std::int64_t> starts = element_starts(numels);
  dispatch(dtype, [&]<class T>(Type<T>) {
    const auto* in = static_cast<const T*>(flat);
    auto body = [&](std::int64_t begin, std::int64_t end) {
      for_pieces(starts, begin, end, [&](std::size_t i, std::int64_t first, std::int64_t last) {
        scale_copy(in + layout.offsets[i] + first, last - first, scale, static_cast<T*>(tensors[i]) + first);
      });
    };
    for_ranges(parallel_for, starts.back(), kGrainBytes / static_cast<std::int64_t>(sizeof(T)), body);
  });
}

}  // namespace fastseq
