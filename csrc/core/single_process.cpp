#include "core/single_process.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "core/dispatch.h"
#include "core/flat_layout.h"

namespace fastseq {

std::shared_ptr<std::byte> allocate_aligned(std::size_t bytes) {
  constexpr auto kAlignment = static_cast<std::size_t>(kFlatAlignment);
  const std::size_t rounded = std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  if (rounded < bytes) throw std::bad_alloc();
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, rounded);
  return {memory, [](std::byte* pointer) { std::free(pointer); }};
}

void scale_in_place(void* data, std::int64_t numel, DType dtype, double scale) {
  if (scale == 1.0) return;
  dispatch(dtype, [&]<class T>(Type<T>) {
    auto* values = static_cast<T*>(data);
    const auto factor = static_cast<Accumulate<T>>(scale);
    for (std::int64_t i = 0; i < numel; ++i) values[i] = T(static_cast<Accumulate<T>>(values[i]) * factor);
  });
}

void SingleProcess::allreduce(void* data, std::int64_t numel, DType dtype, double scale) {
  scale_in_place(data, numel, dtype, scale);
}

void SingleProcess::broadcast(std::span<std::byte> /*data*/, int root) {
  if (root != 0) throw CommunicationError("broadcast: root must be 0 in a single process, got " + std::to_string(root));
}

void SingleProcess::abort(int exit_code) { std::_Exit(exit_code); }

}  // namespace fastseq
