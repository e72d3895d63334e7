#include "cuda/exchanges/nccl_exchange.h"

namespace fastseq::cuda {

void NcclExchange::sum(std::size_t index) {
  const DeviceBucket& own = bucket(index);
  // NCCL adds only: each rank multiplies by its factor. Without one its gradients are not read.
  const double factor = factors()[static_cast<std::size_t>(rank())];
  if (factor != 1) weighted_sum({{own.data}}, {{factor}}, own.numel, own.dtype, {{own.data}}, nullptr, stream());
  nccl_->allreduce(own.data, own.numel, own.dtype, stream());
  if (squares(index) == nullptr) return;
  const Slice part = part_of(own);
  const void* const mean = own.data + static_cast<std::size_t>(part.begin) * item_size(own.dtype);
  weighted_sum({{mean}}, {{1.0}}, part.end - part.begin, own.dtype, {}, squares(index), stream());
}

void NcclExchange::collect() { nccl_->allgather(reinterpret_cast<std::byte*>(news()), sizeof(News), stream()); }

}  // namespace fastseq::cuda
