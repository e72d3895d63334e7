#include "cuda/exchanges/cuda_mpi_exchange.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "cuda/exchanges/ask_all.h"
#include "cuda/exchanges/exchange_kernels.h"
#include "cuda/pack_kernels.h"

namespace fastseq::cuda {

namespace {

// One vector as another dtype.
void convert(const void* from, DType from_dtype, std::int64_t numel, double scale, void* to, DType to_dtype,
             cudaStream_t stream) {
  const std::array<const void*, 1> tensors = {from};
  const std::array<std::int64_t, 1> numels = {numel};
  const FlatLayout layout{.offsets = {0}, .numel = numel};
  pack(tensors, numels, from_dtype, layout, to_dtype, scale, to, {}, stream);
}

}  // namespace

CudaMpiExchange::CudaMpiExchange(std::shared_ptr<Communicator> comm, int device)
    : comm_(std::move(comm)), device_(device), own_(make_on_all<Own>(*comm_)) {}

std::shared_ptr<std::byte> CudaMpiExchange::allocate(std::size_t bytes) {
  std::shared_ptr<std::byte> memory;
  on_all(*comm_, [&] { memory = device_memory(bytes); });
  return memory;
}

void CudaMpiExchange::prepare(std::span<const DeviceBucket> buckets, const double* facts) {
  buckets_.assign(buckets.begin(), buckets.end());
  facts_ = facts;
  std::int64_t wide = 0;
  std::int64_t squares = 0;
  for (const DeviceBucket& bucket : buckets_) {
    if (item_size(bucket.dtype) == 2) wide = std::max(wide, bucket.numel);
    squares = std::max(squares, squares_scratch(bucket.numel));
  }
  on_all(*comm_, [&] {
    packed_.resize(buckets_.size());
    for (auto& event : packed_) event = std::make_unique<Event>();
    wide_ = std::make_unique<DeviceMemory>(static_cast<std::size_t>(wide) * sizeof(float));
    squares_ = std::make_unique<DeviceMemory>(static_cast<std::size_t>(squares) * sizeof(double));
  });
  told_.resize(static_cast<std::size_t>(std::max<std::int64_t>(squares, 3)));
}

void CudaMpiExchange::gathered(std::size_t bucket, cudaStream_t packs) { packed_[bucket]->record(packs); }

Reduced CudaMpiExchange::average(std::size_t index, const Reduction& reduction) {
  set_device(device_);  // of this thread
  const DeviceBucket& bucket = buckets_[index];
  const bool last = index + 1 == buckets_.size();
  packed_[index]->precede(own_->averages);
  copy(told_.data(), facts_ + 2 * index, 2 * sizeof(double), cudaMemcpyDeviceToHost, own_->averages);
  if (last && value_ != nullptr) copy(&told_[2], value_, sizeof(double), cudaMemcpyDefault, own_->averages);
  synchronize(own_->averages);
  Reduction own = reduction;
  own.mean = false;
  own.squares = false;
  if (told_[0] == 0 && own.weight != 0) own.flags |= kAlarm;
  if (last && value_ != nullptr) own.value = told_[2];
  double ignored = 0;
  Reduced reduced = comm_->allreduce(&ignored, 1, DType::kFloat64, own);
  sum(bucket, reduced.weight == 0 ? 0 : own.weight / reduced.weight);
  if (reduction.squares) reduced.sum_of_squares = sum_of_squares(bucket);
  if (last) own_->averaged.record(own_->averages);
  return reduced;
}

void CudaMpiExchange::sum(const DeviceBucket& bucket, double factor) {
  // MPI adds only: each rank multiplies by its factor. Without one its gradients are not read.
  weighted_sum({{bucket.data}}, {{factor}}, bucket.numel, bucket.dtype, {{bucket.data}}, nullptr, own_->averages);
  if (item_size(bucket.dtype) != 2) {
    synchronize(own_->averages);
    comm_->sum_on_device(bucket.data, bucket.numel, bucket.dtype);
    return;
  }
  convert(bucket.data, bucket.dtype, bucket.numel, 1, wide_->data(), DType::kFloat32, own_->averages);
  synchronize(own_->averages);
  comm_->sum_on_device(wide_->data(), bucket.numel, DType::kFloat32);
  convert(wide_->data(), DType::kFloat32, bucket.numel, 1, bucket.data, bucket.dtype, own_->averages);
}

double CudaMpiExchange::sum_of_squares(const DeviceBucket& bucket) {
  auto* const squares = reinterpret_cast<double*>(squares_->data());
  weighted_sum({{bucket.data}}, {{1.0}}, bucket.numel, bucket.dtype, {}, squares, own_->averages);
  const std::int64_t count = squares_scratch(bucket.numel);
  copy(told_.data(), squares, static_cast<std::size_t>(count) * sizeof(double), cudaMemcpyDeviceToHost, own_->averages);
  synchronize(own_->averages);
  return std::accumulate(told_.begin(), told_.begin() + count, 0.0);
}

}  // namespace fastseq::cuda
