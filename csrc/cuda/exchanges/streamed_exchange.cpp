#include "cuda/exchanges/streamed_exchange.h"

#include <utility>

#include "cuda/exchanges/ask_all.h"

namespace fastseq::cuda {

StreamedExchange::StreamedExchange(std::shared_ptr<Communicator> comm, int device, bool norm)
    : comm_(std::move(comm)),
      device_(device),
      norm_(norm),
      factors_(static_cast<std::size_t>(comm_->size())),
      own_(make_on_all<Own>(*comm_, comm_->size())) {}

void StreamedExchange::prepare(std::span<const DeviceBucket> buckets, const double* facts) {
  buckets_.assign(buckets.begin(), buckets.end());
  facts_ = facts;
  first_square_ = {0};
  for (const DeviceBucket& bucket : buckets_) {
    const Slice part = part_of(bucket);
    first_square_.push_back(first_square_.back() + (norm_ ? squares_scratch(part.end - part.begin) : 0));
  }
  on_all(*comm_, [&] {
    packed_.resize(buckets_.size());
    for (auto& event : packed_) event = std::make_unique<Event>();
    squares_ = std::make_unique<DeviceMemory>(static_cast<std::size_t>(first_square_.back()) * sizeof(double));
  });
}

double* StreamedExchange::squares(std::size_t bucket) const {
  const bool none = first_square_[bucket] == first_square_[bucket + 1];
  return none ? nullptr : reinterpret_cast<double*>(squares_->data()) + first_square_[bucket];
}

void StreamedExchange::gathered(std::size_t bucket, cudaStream_t packs) { packed_[bucket]->record(packs); }

Reduced StreamedExchange::agree(const Reduction& reduction) {
  std::vector<double> weights(factors_.size());
  weights[static_cast<std::size_t>(rank())] = reduction.weight;
  Reduction facts = reduction;
  facts.mean = false;
  facts.squares = false;
  const Reduced reduced =
      comm_->allreduce(weights.data(), static_cast<std::int64_t>(weights.size()), DType::kFloat64, facts);
  for (std::size_t r = 0; r < weights.size(); ++r) {
    factors_[r] = reduced.weight == 0 ? 0 : weights[r] / reduced.weight;
  }
  return reduced;
}

Reduced StreamedExchange::average(std::size_t bucket, const Reduction& reduction) {
  set_device(device_);  // of this thread
  const Reduced reduced = agree(reduction);
  packed_[bucket]->precede(own_->averages);
  sum(bucket);
  if (bucket + 1 == buckets_.size()) {
    write_news({.facts = facts_,
                .buckets = static_cast<std::int64_t>(buckets_.size()),
                .value = value_,
                .factor = factors_[static_cast<std::size_t>(rank())],
                .squares = reinterpret_cast<const double*>(squares_->data()),
                .squares_count = first_square_.back()},
               own_news(), own_->averages);
    collect();
    conclude(news(), size(), reinterpret_cast<Outcome*>(own_->outcome.data()), own_->averages);
  }
  own_->last.record(own_->averages);
  look_after(own_->last);
  return reduced;
}

void StreamedExchange::sum(std::size_t index) {
  const DeviceBucket& own = bucket(index);
  const double factor = factors()[0];  // 1, or 0: without a weight the mean is 0
  if (factor == 1 && squares(index) == nullptr) return;
  weighted_sum({{own.data}}, {{factor}}, own.numel, own.dtype, {{own.data}}, squares(index), stream());
}

bool StreamedExchange::settle() {
  cudaStreamSynchronize(own_->averages);
  return true;
}

}  // namespace fastseq::cuda
