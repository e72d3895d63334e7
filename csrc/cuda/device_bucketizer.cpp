#include "cuda/device_bucketizer.h"

#include <cstddef>

#include "cuda/pack_kernels.h"

namespace fastseq::cuda {

namespace {

// Tensors of a bucket as the packer takes them, within the bucket.
struct Pieces {
  std::vector<const void*> tensors;
  std::vector<std::int64_t> numels;
  FlatLayout layout;
};

}  // namespace

DeviceBucketizer::DeviceBucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                                   std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, bool norm,
                                   int device)
    : Bucketizer(comm, numels, dtypes, bucket_bytes, threaded, norm), device_(device) {
  check(cudaSetDevice(device_), "cudaSetDevice");
  for (const Buffer& buffer : buffers()) {
    const std::size_t bytes = static_cast<std::size_t>(buffer.layout.numel) * item_size(buffer.dtype);
    twins_.push_back(std::make_unique<DeviceMemory>(bytes));
    registered_.push_back(std::make_unique<Registered>(buffer.memory.get(), bytes));
  }
  host_facts_.resize(2 * buckets().size());
  facts_ = std::make_unique<DeviceMemory>(host_facts_.size() * sizeof(double));
  registered_facts_ = std::make_unique<Registered>(host_facts_.data(), host_facts_.size() * sizeof(double));
  for (const Bucket& bucket : buckets()) {
    ways_.push_back(std::make_unique<Way>());
    std::vector<std::int64_t> lengths;
    for (const std::int64_t index : bucket.members) lengths.push_back(numel(index));
    const FlatLayout layout = flat_layout(lengths, buffers()[bucket.buffer].dtype, kFlatAlignment);
    ways_.back()->scratch =
        std::make_unique<DeviceMemory>(static_cast<std::size_t>(facts_scratch(lengths, layout)) * sizeof(double));
  }
}

DeviceBucketizer::~DeviceBucketizer() {
  end_thread();
  wait();
}

// After it nobody reads gradients or writes to the host's buffers.
void DeviceBucketizer::wait() const {
  cudaStreamSynchronize(packs_);
  cudaStreamSynchronize(copies_);
}

std::byte* DeviceBucketizer::device_data(std::size_t bucket) const {
  const Bucket& own = buckets()[bucket];
  return twins_[own.buffer]->data() + (data_of(own) - buffers()[own.buffer].memory.get());
}

double* DeviceBucketizer::facts_of(std::size_t bucket) const {
  return reinterpret_cast<double*>(facts_->data()) + 2 * bucket;
}

void* DeviceBucketizer::device_place(std::int64_t index) const {
  const std::size_t bucket = bucket_of(index);
  return device_data(bucket) + (place(index) - data_of(buckets()[bucket]));
}

void DeviceBucketizer::start(double weight, double value, bool attention, double scale, cudaStream_t reader) {
  Bucketizer::start(weight, value, attention, scale);
  for (const auto& way : ways_) way->streams = 0;
  read_.record(reader);
  read_.precede(packs_);
}

std::int64_t DeviceBucketizer::ready(std::int64_t index, const void* gradient, cudaStream_t producer) {
  Way& way = *ways_[bucket_of(index)];
  std::size_t k = 0;
  while (k < way.streams && way.produced[k].first != producer) ++k;
  if (k == way.streams) {
    if (k == way.produced.size()) way.produced.emplace_back(producer, std::make_unique<Event>());
    way.produced[k].first = producer;
    ++way.streams;
  }
  way.produced[k].second->record(producer);
  return Bucketizer::ready(index, gradient);
}

bool DeviceBucketizer::gather(std::size_t index) {
  const Bucket& bucket = buckets()[index];
  Way& way = *ways_[index];
  const DType dtype = buffers()[bucket.buffer].dtype;
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  for (std::size_t k = 0; k < way.streams; ++k) way.produced[k].second->precede(packs_);
  Pieces pieces;
  pieces.layout.numel = bucket.numel;
  for (auto member = bucket.members.rbegin(); member != bucket.members.rend(); ++member) {  // as they lie
    const void* from = gradient(*member);
    pieces.tensors.push_back(from);
    pieces.numels.push_back(from == nullptr ? 0 : numel(*member));  // without it zeros are written
    pieces.layout.offsets.push_back((place(*member) - data_of(bucket)) / item);
  }
  pack(pieces.tensors, pieces.numels, dtype, pieces.layout, dtype, scale(), device_data(index),
       {.facts = facts_of(index), .scratch = reinterpret_cast<double*>(way.scratch->data())}, packs_);
  way.packed.record(packs_);
  way.packed.precede(copies_);
  const std::size_t bytes = static_cast<std::size_t>(bucket.numel * item);
  check(cudaMemcpyAsync(data_of(bucket), device_data(index), bytes, cudaMemcpyDeviceToHost, copies_),
        "cudaMemcpyAsync");
  check(cudaMemcpyAsync(&host_facts_[2 * index], facts_of(index), 2 * sizeof(double), cudaMemcpyDeviceToHost, copies_),
        "cudaMemcpyAsync");
  way.fetched.record(copies_);
  return false;  // it is not known yet
}

bool DeviceBucketizer::arrive(std::size_t index) {
  check(cudaSetDevice(device_), "cudaSetDevice");  // of this thread
  ways_[index]->fetched.synchronize();
  return host_facts_[2 * index] == 0;
}

void DeviceBucketizer::deliver(std::size_t index) {
  const Bucket& bucket = buckets()[index];
  const std::size_t bytes = static_cast<std::size_t>(bucket.numel) * item_size(buffers()[bucket.buffer].dtype);
  check(cudaMemcpyAsync(device_data(index), data_of(bucket), bytes, cudaMemcpyHostToDevice, copies_),
        "cudaMemcpyAsync");
  ways_[index]->delivered.record(copies_);
}

DeviceBucketizer::Result DeviceBucketizer::finish(cudaStream_t reader) {
  try {
    Result result = Bucketizer::finish();
    for (const auto& way : ways_) way->delivered.precede(reader);
    return result;
  } catch (...) {  // buckets may be under way that nobody has waited for
    wait();
    throw;
  }
}

void DeviceBucketizer::abandon() {
  try {
    Bucketizer::abandon();
  } catch (...) {
    wait();
    throw;
  }
  wait();
}

}  // namespace fastseq::cuda
