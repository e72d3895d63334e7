#include "core/ranks/bucketizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/base/pack.h"

#ifdef __unix__
#include <unistd.h>
#endif

namespace fastseq {

namespace {

// Flags sent with a bucket; the alarm is an infinite or NaN gradient.
constexpr std::uint64_t kUnused = 2;
constexpr std::uint64_t kAttention = 4;

// Calls `what` when its scope is left in any way.
template <class What>
struct Ended {
  What what;
  ~Ended() { what(); }
};
template <class What>
Ended(What) -> Ended<What>;  // Clang deduces it by itself from 17 on

}  // namespace

Bucketizer::Bucketizer(const std::shared_ptr<Communicator>& comm, std::span<const std::int64_t> numels,
                       std::span<const DType> dtypes, std::int64_t bucket_bytes, bool threaded, bool norm,
                       const Allocate& allocate)
    : comm_(comm),
      numels_(numels.begin(), numels.end()),
      bucket_of_(numels.size()),
      places_(numels.size()),
      norm_(norm),
      gradients_(numels.size()),
      seen_(numels.size()),
      used_(numels.size()) {
  if (bucket_bytes <= 0) {
    throw std::invalid_argument("Bucketizer: bucket_bytes must be positive, got " + std::to_string(bucket_bytes));
  }
  if (numels.size() != dtypes.size()) {
    throw std::invalid_argument("Bucketizer: " + std::to_string(numels.size()) + " lengths, but " +
                                std::to_string(dtypes.size()) + " dtypes");
  }
  for (DTypeGroup& group : group_by_dtype(dtypes)) {
    std::vector<std::int64_t> lengths;
    lengths.reserve(group.members.size());
    for (const std::int64_t i : group.members) lengths.push_back(numels_[static_cast<std::size_t>(i)]);
    FlatLayout layout = flat_layout(lengths, group.dtype, kFlatAlignment);
    auto memory = allocate(static_cast<std::size_t>(layout.numel) * item_size(group.dtype));
    for (std::size_t k = 0; k < group.members.size(); ++k) {
      places_[static_cast<std::size_t>(group.members[k])] =
          memory.get() + static_cast<std::size_t>(layout.offsets[k]) * item_size(group.dtype);
    }
    buffers_.push_back({group.dtype, std::move(group.members), std::move(layout), std::move(memory)});
  }
  plan(bucket_bytes);
  reset();
#ifdef __unix__
  shared_->process = getpid();
#endif
  if (threaded) shared_->thread = std::thread([this] { work(); });
}

Bucketizer::~Bucketizer() {
  if (forked()) {
    [[maybe_unused]] const Shared* left = shared_.release();
  } else {
    end_thread();
  }
}

bool Bucketizer::forked() const {
#ifdef __unix__
  return getpid() != shared_->process;
#else
  return false;
#endif
}

void Bucketizer::end_thread() {
  if (!shared_->thread.joinable()) return;
  {
    const std::scoped_lock lock(shared_->mutex);
    shared_->stopping = true;
    shared_->queue.clear();
  }
  shared_->changed.notify_all();
  shared_->thread.join();
}

void Bucketizer::stop() {
  if (forked()) return;
  if (started_) comm_->interrupt();
  end_thread();
  reset();
}

void Bucketizer::plan(std::int64_t bucket_bytes) {
  for (std::size_t b = 0; b < buffers_.size(); ++b) {
    const Buffer& buffer = buffers_[b];
    const auto item = static_cast<std::int64_t>(item_size(buffer.dtype));
    std::int64_t end = buffer.layout.numel;
    std::vector<std::int64_t> members;
    for (std::size_t k = buffer.members.size(); k-- > 0;) {
      members.push_back(buffer.members[k]);
      const std::int64_t begin = buffer.layout.offsets[k];
      if (k > 0 && (end - begin) * item < bucket_bytes) continue;
      for (const std::int64_t i : members) bucket_of_[static_cast<std::size_t>(i)] = buckets_.size();
      buckets_.push_back({.buffer = b, .begin = begin, .numel = end - begin, .members = members, .missing = 0});
      members.clear();
      end = begin;
    }
  }
}

void Bucketizer::reset() {
  for (Bucket& bucket : buckets_) bucket.missing = bucket.members.size();
  seen_.assign(seen_.size(), false);
  next_ = 0;
  started_ = false;
}

void Bucketizer::start(double weight, double value, bool attention, double scale) {
  if (started_) throw std::logic_error("an update is under way already: call wait() first");
  if (!(weight >= 0 && std::isfinite(weight))) {
    throw std::invalid_argument("weight must be a finite number that is not negative, got " + std::to_string(weight));
  }
  started_ = true;
  weight_ = weight;
  value_ = value;
  scale_ = scale;
  attention_ = attention ? kAttention : 0;
  ++step_;
  flags_ = 0;
  sum_of_squares_ = 0;
  result_ = {};
}

std::int64_t Bucketizer::ready(std::int64_t index, const void* gradient) {
  const auto i = static_cast<std::size_t>(index);
  if (seen_.at(i)) {
    throw std::logic_error(
        "a parameter got a second gradient before wait(): call wait() after each backward, or run all but the last "
        "backward under no_sync()");
  }
  settle(i, gradient, true);
  return static_cast<std::int64_t>(next_);
}

void Bucketizer::settle(std::size_t index, const void* gradient, bool used) {
  seen_[index] = true;
  used_[index] = used;
  gradients_[index] = gradient;
  --buckets_[bucket_of_[index]].missing;
  launch_full_buckets();
}

void Bucketizer::launch_full_buckets() {
  for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
    std::uint64_t flags = attention_;
    for (const std::int64_t index : buckets_[next_].members) {
      if (!used_[static_cast<std::size_t>(index)]) flags |= kUnused;
    }
    if (gather(next_)) flags |= kAlarm;
    submit(next_, flags);
  }
}

bool Bucketizer::gather(std::size_t bucket) {
  const DType dtype = buffers_[buckets_[bucket].buffer].dtype;
  bool alarm = false;
  for (const std::int64_t index : buckets_[bucket].members) {
    const void* from = gradient(index);
    if (from == nullptr) {
      std::memset(place(index), 0, static_cast<std::size_t>(numel(index)) * item_size(dtype));
    } else if (!scaled_copy(from, dtype, numel(index), scale_, place(index), dtype).finite) {
      alarm = true;
    }
  }
  return alarm;
}

std::byte* Bucketizer::data_of(const Bucket& bucket) const {
  const Buffer& buffer = buffers_[bucket.buffer];
  return buffer.memory.get() + static_cast<std::size_t>(bucket.begin) * item_size(buffer.dtype);
}

const void* Bucketizer::gradient(std::int64_t index) const {
  const auto i = static_cast<std::size_t>(index);
  return used_[i] ? gradients_[i] : nullptr;
}

void Bucketizer::submit(std::size_t bucket, std::uint64_t flags) {
  {
    const std::scoped_lock lock(shared_->mutex);
    if (shared_->error) return;
    shared_->queue.push_back({bucket, flags});
  }
  shared_->changed.notify_all();
}

Reduced Bucketizer::average(std::size_t bucket, const Reduction& reduction) {
  const Bucket& own = buckets_[bucket];
  return comm_->allreduce(data_of(own), own.numel, buffers_[own.buffer].dtype, reduction);
}

void Bucketizer::exchange(std::size_t bucket, std::uint64_t flags) {
  if (weight_ == 0.0) flags &= ~kAlarm;  // they do not count
  const Reduced reduced = average(bucket, {.weight = weight_,
                                           .value = value_,
                                           .flags = flags,
                                           .sequence = (step_ << kBucketBits) | static_cast<std::int64_t>(bucket),
                                           .squares = norm_});
  result_.weight = reduced.weight;
  result_.value = reduced.value;
  flags_ |= reduced.flags;
  sum_of_squares_ += reduced.sum_of_squares;
  if (result_.nonfinite_rank < 0) result_.nonfinite_rank = reduced.alarmed_rank;
}

void Bucketizer::work() {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  while (true) {
    shared.changed.wait(lock, [&] { return shared.stopping || !shared.queue.empty(); });
    if (shared.stopping) return;
    const Job job = shared.queue.front();
    shared.queue.pop_front();
    shared.busy = true;
    lock.unlock();
    std::exception_ptr error;
    try {
      exchange(job.bucket, job.flags);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    shared.busy = false;
    if (error) {
      shared.error = error;
      shared.queue.clear();
    }
    shared.changed.notify_all();
  }
}

void Bucketizer::drain() {
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  if (shared.thread.joinable()) {
    shared.changed.wait(lock, [&] { return shared.queue.empty() && !shared.busy; });
  }
  while (!shared.queue.empty()) {
    const Job job = shared.queue.front();
    shared.queue.pop_front();
    try {
      exchange(job.bucket, job.flags);
    } catch (...) {
      shared.error = std::current_exception();
      shared.queue.clear();
    }
  }
  if (const std::exception_ptr error = std::exchange(shared.error, nullptr)) std::rethrow_exception(error);
}

Bucketizer::Result Bucketizer::finish() {
  if (!started_) throw std::logic_error("no update is under way: wait() comes after start() or a backward pass");
  const Ended ended{[this] { reset(); }};
  for (std::size_t i = 0; i < seen_.size(); ++i) {
    if (!seen_[i]) settle(i, nullptr, false);
  }
  drain();
  result_.attention = (flags_ & kAttention) != 0;
  result_.norm = std::sqrt(sum_of_squares_);
  if ((flags_ & kUnused) != 0) result_.unused = find_unused();
  return result_;
}

std::vector<std::int64_t> Bucketizer::find_unused() {
  std::vector<float> users(used_.size());
  for (std::size_t i = 0; i < users.size(); ++i) users[i] = used_[i] && weight_ != 0.0 ? 1.0F : 0.0F;
  comm_->allreduce(users.data(), static_cast<std::int64_t>(users.size()), DType::kFloat32, {.mean = false});
  std::vector<std::int64_t> unused;
  for (std::size_t i = 0; i < users.size(); ++i) {
    if (users[i] == 0.0F) unused.push_back(static_cast<std::int64_t>(i));
  }
  return unused;
}

void Bucketizer::abandon() {
  const Ended ended{[this] { reset(); }};
  drain();
}

}  // namespace fastseq
