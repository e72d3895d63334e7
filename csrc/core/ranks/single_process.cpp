#include "core/ranks/single_process.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/base/pack.h"
#include "core/ranks/agreement.h"

namespace fastseq {

std::shared_ptr<std::byte> allocate_aligned(std::size_t bytes) {
  constexpr std::size_t kAlignment = 4096;
  const std::size_t rounded = std::max((bytes + kAlignment - 1) / kAlignment * kAlignment, kAlignment);
  if (rounded < bytes) throw std::bad_alloc();
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, 0, rounded);
  return {memory, [](std::byte* pointer) { std::free(pointer); }};
}

Reduced SingleProcess::allreduce(void* data, std::int64_t numel, DType dtype, const Reduction& reduction) {
  const Call call = allreduce_call(numel, dtype, reduction);
  if (reduction.mean && call.weight == 0.0) {
    std::memset(data, 0, static_cast<std::size_t>(call.bytes));
  }
  Reduced reduced = reduced_of(outcome_of({&call, 1}));
  if (reduction.squares) reduced.sum_of_squares = facts_of(data, numel, dtype).sum_of_squares;
  return reduced;
}

void SingleProcess::broadcast(std::span<std::byte> /*data*/, int root) { check_root(root, 1); }

void SingleProcess::abort(int exit_code) { std::_Exit(exit_code); }

}  // namespace fastseq
