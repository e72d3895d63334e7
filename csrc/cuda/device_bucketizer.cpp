#include "cuda/device_bucketizer.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "cuda/exchanges/ask_all.h"
#include "cuda/pack_kernels.h"

namespace fastseq::cuda {

namespace {

// What the gradients are exchanged as.
std::vector<DType> on_the_wire(std::span<const DType> dtypes, bool half_wire) {
  if (!half_wire) return {dtypes.begin(), dtypes.end()};
  if (!std::ranges::all_of(dtypes, [](DType dtype) { return dtype == DType::kFloat32; })) {
    throw std::invalid_argument("only gradients of float32 can be exchanged as bfloat16");
  }
  return std::vector<DType>(dtypes.size(), DType::kBFloat16);
}

}  // namespace

DeviceBucketizer::DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, int device,
                                   const ExchangeOptions& options, bool half_wire)
    : DeviceBucketizer(OnDevice(device), comm, numels, dtypes, bucket_bytes, threaded, device, options, half_wire) {}

DeviceBucketizer::DeviceBucketizer(const OnDevice& /*on*/, const std::shared_ptr<Communicator>& comm,
                                   std::span<const std::int64_t> numels, std::span<const DType> dtypes,
                                   std::int64_t bucket_bytes, bool threaded, int device, const ExchangeOptions& options,
                                   bool half_wire)
    : DeviceBucketizer(comm, numels, dtypes, bucket_bytes, threaded, device, options, half_wire,
                       make_exchange(comm, device, options)) {}

DeviceBucketizer::DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, int device,
                                   const ExchangeOptions& options, bool half_wire, std::unique_ptr<Exchange> exchange)
    : Bucketizer(comm, numels, on_the_wire(dtypes, half_wire), bucket_bytes, threaded, options.norm,
                 [&](std::size_t bytes) { return exchange->allocate(bytes); }),
      device_(device),
      widens_(half_wire),
      producers_(buckets().size()),
      packs_(device),
      exchange_(std::move(exchange)) {
  std::vector<DeviceBucket> all;
  for (const Bucket& bucket : buckets()) {
    all.push_back({.data = data_of(bucket), .numel = bucket.numel, .dtype = buffers()[bucket.buffer].dtype});
  }
  on_all(*comm, [&] { allocate(numels, half_wire); });
  exchange_->prepare(all, reinterpret_cast<const double*>(facts_->data()));
}

void DeviceBucketizer::allocate(std::span<const std::int64_t> numels, bool half_wire) {
  facts_ = std::make_unique<DeviceMemory>(2 * buckets().size() * sizeof(double));
  for (const Bucket& bucket : buckets()) {
    std::vector<std::int64_t> lengths;
    lengths.reserve(bucket.members.size());
    for (const std::int64_t index : bucket.members) lengths.push_back(numel(index));
    const FlatLayout layout = flat_layout(lengths, buffers()[bucket.buffer].dtype, kFlatAlignment);
    scratch_.push_back(
        std::make_unique<DeviceMemory>(static_cast<std::size_t>(facts_scratch(lengths, layout)) * sizeof(double)));
  }
  make_places(numels, half_wire);
}

DeviceBucketizer::~DeviceBucketizer() {
  if (!ended()) leave();
}

bool DeviceBucketizer::ended() noexcept {
  if (forked()) return false;
  try {
    end_thread();
    const OnDevice on(device_);
    return settle();
  } catch (const std::exception&) {
    return false;
  }
}

void DeviceBucketizer::leave() {
  [[maybe_unused]] const auto* const left =
      new std::tuple(std::move(exchange_), std::move(facts_), std::move(scratch_), std::move(places_));
}

void DeviceBucketizer::make_places(std::span<const std::int64_t> numels, bool half_wire) {
  for (const Buffer& buffer : buffers()) {
    Places places{buffer.dtype, buffer.members, buffer.layout.offsets, buffer.memory,
                  static_cast<std::size_t>(buffer.layout.numel) * item_size(buffer.dtype)};
    if (half_wire) {
      const FlatLayout layout = flat_layout(numels, DType::kFloat32, kFlatAlignment);
      places.dtype = DType::kFloat32;
      places.offsets = layout.offsets;
      places.bytes = static_cast<std::size_t>(layout.numel) * sizeof(float);
      places.memory = device_memory(places.bytes);
    }
    places_.push_back(std::move(places));
  }
}

bool DeviceBucketizer::settle() {
  if (!exchange_->settle()) return false;
  cudaStreamSynchronize(packs_);  // they may wait for the means of the update before
  return true;
}

void DeviceBucketizer::start(double weight, const double* value, bool attention, double scale, cudaStream_t reader) {
  const OnDevice on(device_);
  Bucketizer::start(weight, 0, attention, scale);
  exchange_->set_value(value);
  for (Producers& producers : producers_) producers.count = 0;
  read_.record(reader);
  read_.precede(packs_);
}

std::int64_t DeviceBucketizer::ready(std::int64_t index, const void* gradient, cudaStream_t producer) {
  const OnDevice on(device_);
  Producers& producers = producers_[bucket_of(index)];
  std::size_t k = 0;
  while (k < producers.count && producers.events[k].first != producer) ++k;
  if (k == producers.count) {
    if (k == producers.events.size()) producers.events.emplace_back(producer, std::make_unique<Event>());
    producers.events[k].first = producer;
    ++producers.count;
  }
  producers.events[k].second->record(producer);
  return Bucketizer::ready(index, gradient);
}

bool DeviceBucketizer::gather(std::size_t index) {
  const Bucket& bucket = buckets()[index];
  const Producers& producers = producers_[index];
  const DType dtype = buffers()[bucket.buffer].dtype;
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  for (std::size_t k = 0; k < producers.count; ++k) producers.events[k].second->precede(packs_);
  std::vector<const void*> tensors;
  std::vector<std::int64_t> numels;
  FlatLayout layout;
  layout.numel = bucket.numel;
  for (auto member = bucket.members.rbegin(); member != bucket.members.rend(); ++member) {  // as they lie
    const void* from = gradient(*member);
    tensors.push_back(from);
    numels.push_back(from == nullptr ? 0 : numel(*member));  // without it zeros are written
    layout.offsets.push_back((place(*member) - data_of(bucket)) / item);
  }
  pack(tensors, numels, widens_ ? DType::kFloat32 : dtype, layout, dtype, scale(), data_of(bucket),
       {.facts = facts_of(index), .scratch = reinterpret_cast<double*>(scratch_[index]->data())}, packs_);
  exchange_->gathered(index, packs_);
  return false;  // it is not known yet
}

// From what is exchanged to the places.
void DeviceBucketizer::widen(cudaStream_t reader) {
  for (std::size_t b = 0; b < places_.size(); ++b) {
    const Buffer& from = buffers()[b];
    const Places& to = places_[b];
    std::vector<const void*> tensors;
    std::vector<std::int64_t> numels;
    for (const std::int64_t index : from.members) {
      tensors.push_back(place(index));
      numels.push_back(numel(index));
    }
    const FlatLayout layout{.offsets = to.offsets, .numel = static_cast<std::int64_t>(to.bytes / item_size(to.dtype))};
    pack(tensors, numels, from.dtype, layout, to.dtype, 1, to.memory.get(), {}, reader);
  }
}

DeviceBucketizer::Result DeviceBucketizer::finish(cudaStream_t reader) {
  const OnDevice on(device_);
  try {
    Result result = Bucketizer::finish();
    exchange_->precede(reader);
    if (widens_) widen(reader);
    return result;
  } catch (...) {  // buckets may be under way that nobody has waited for
    settle();
    throw;
  }
}

void DeviceBucketizer::abandon() {
  const OnDevice on(device_);
  try {
    Bucketizer::abandon();
  } catch (...) {
    settle();
    throw;
  }
  settle();
}

}  // namespace fastseq::cuda
