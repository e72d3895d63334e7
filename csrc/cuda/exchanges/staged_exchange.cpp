#include "cuda/exchanges/staged_exchange.h"

#include <algorithm>
#include <utility>

#include "cuda/exchanges/ask_all.h"

namespace fastseq::cuda {

namespace {

constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;

}  // namespace

StagedExchange::StagedExchange(std::shared_ptr<Communicator> comm, int device)
    : comm_(std::move(comm)), device_(device), lanes_(make_on_all<Lanes>(*comm_)) {}

std::shared_ptr<std::byte> StagedExchange::allocate(std::size_t bytes) {
  std::shared_ptr<std::byte> memory;
  on_all(*comm_, [&] { memory = device_memory(bytes); });
  auto host = comm_->allocate(bytes);
  auto registered = make_on_all<Registered>(*comm_, host.get(), bytes);
  buffers_.push_back({memory.get(), bytes, std::move(host), std::move(registered)});
  return memory;
}

void StagedExchange::prepare(std::span<const DeviceBucket> buckets, const double* facts) {
  facts_ = facts;
  on_all(*comm_, [&] { plan(buckets); });
}

void StagedExchange::plan(std::span<const DeviceBucket> buckets) {
  told_.resize(2 * buckets.size() + 1);
  registered_told_ = std::make_unique<Registered>(told_.data(), told_.size() * sizeof(double));
  for (const DeviceBucket& bucket : buckets) {
    const auto holds = [&](const Buffer& b) { return bucket.data >= b.device && bucket.data <= b.device + b.bytes; };
    const Buffer& buffer = *std::ranges::find_if(buffers_, holds);
    const auto item = static_cast<std::int64_t>(item_size(bucket.dtype));
    Way& way = *ways_.emplace_back(std::make_unique<Way>());
    way.dtype = bucket.dtype;
    const std::int64_t most = kPieceBytes / item;
    for (std::int64_t first = 0; first == 0 || first < bucket.numel; first += most) {
      std::byte* const at = bucket.data + first * item;
      way.pieces.push_back({at, buffer.host.get() + (at - buffer.device), std::min(most, bucket.numel - first),
                            std::make_unique<Event>()});
    }
  }
}

void StagedExchange::gathered(std::size_t bucket, cudaStream_t packs) {
  Way& way = *ways_[bucket];
  way.packed.record(packs);
  way.packed.precede(lanes_->fetches);
  const std::size_t item = item_size(way.dtype);
  // Before the data: they are there when the first piece is.
  copy(&told_[2 * bucket], facts_ + 2 * bucket, 2 * sizeof(double), cudaMemcpyDeviceToHost, lanes_->fetches);
  if (bucket + 1 == ways_.size() && value_ != nullptr) {
    copy(&told_.back(), value_, sizeof(double), cudaMemcpyDefault, lanes_->fetches);
  }
  for (const Piece& piece : way.pieces) {
    copy(piece.host, piece.device, static_cast<std::size_t>(piece.numel) * item, cudaMemcpyDeviceToHost,
         lanes_->fetches);
    piece.fetched->record(lanes_->fetches);
  }
}

Reduced StagedExchange::average(std::size_t bucket, const Reduction& reduction) {
  set_device(device_);  // of this thread
  const Way& way = *ways_[bucket];
  Reduction own = reduction;
  Reduced reduced;
  double squares = 0;
  for (const Piece& piece : way.pieces) {
    piece.fetched->synchronize();
    if (told_[2 * bucket] == 0 && own.weight != 0) own.flags |= kAlarm;
    if (bucket + 1 == ways_.size() && value_ != nullptr) own.value = told_.back();
    reduced = comm_->allreduce(piece.host, piece.numel, way.dtype, own);
    squares += reduced.sum_of_squares;
    copy(piece.device, piece.host, static_cast<std::size_t>(piece.numel) * item_size(way.dtype), cudaMemcpyHostToDevice,
         lanes_->deliveries);
  }
  reduced.sum_of_squares = squares;
  if (bucket + 1 == ways_.size()) lanes_->delivered.record(lanes_->deliveries);
  return reduced;
}

void StagedExchange::precede(cudaStream_t reader) { lanes_->delivered.precede(reader); }

bool StagedExchange::settle() {
  cudaStreamSynchronize(lanes_->fetches);
  cudaStreamSynchronize(lanes_->deliveries);
  return true;
}

}  // namespace fastseq::cuda
