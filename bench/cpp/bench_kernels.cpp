// Kernels on a GPU, timed by its events: the packer, and batched products of small matrices.
#include <cmath>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/base/dispatch.h"
#include "cuda/bmm_kernels.h"
#include "cuda/pack_kernels.h"
#include "cuda/streams.h"
#include "harness.h"

namespace fastseq::bench {

namespace {

using cuda::check;
using cuda::DeviceMemory;
using cuda::Stream;

class TimedEvent {
 public:
  TimedEvent() { check(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~TimedEvent() { cudaEventDestroy(event_); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// The time that the device takes for a call's work.
Timer on_device(const std::shared_ptr<Stream>& stream) {
  return [stream](benchmark::State& state, const Call& call) {
    const TimedEvent begin;
    const TimedEvent end;
    for ([[maybe_unused]] const auto _ : state) {
      check(cudaEventRecord(begin.get(), *stream), "cudaEventRecord");
      call();
      check(cudaEventRecord(end.get(), *stream), "cudaEventRecord");
      check(cudaEventSynchronize(end.get()), "cudaEventSynchronize");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "cudaEventElapsedTime");
      state.SetIterationTime(milliseconds / 1e3);
    }
  };
}

void add_kernel(const std::string& name, Work work, const std::shared_ptr<Stream>& stream, std::function<Call()> make) {
  add(name, work, std::move(make), on_device(stream))->UseManualTime();
}

template <class T>
void upload(const DeviceMemory& to, const std::vector<T>& values) {
  check(cudaMemcpy(to.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
}

template <class T>
std::vector<T> download(const void* from, std::int64_t numel) {
  std::vector<T> values(static_cast<std::size_t>(numel));
  check(cudaMemcpy(values.data(), from, values.size() * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return values;
}

// fp32 tensors, one after another, and a flat buffer of another dtype.
struct Packing {
  std::vector<std::int64_t> numels;
  FlatLayout layout;
  std::vector<float> values;
  DeviceMemory tensors;
  DeviceMemory flat;
  DeviceMemory scratch;
  DeviceMemory facts;
  std::vector<const void*> from;

  Packing(const std::vector<std::int64_t>& set, DType dtype)
      : numels(set),
        layout(flat_layout(numels, dtype, kFlatAlignment)),
        values(noise<float>(std::accumulate(set.begin(), set.end(), std::int64_t{0}), 1)),
        tensors(values.size() * sizeof(float)),
        flat(static_cast<std::size_t>(layout.numel) * item_size(dtype)),
        scratch(static_cast<std::size_t>(cuda::facts_scratch(numels, layout)) * sizeof(double)),
        facts(2 * sizeof(double)) {
    upload(tensors, values);
    const auto* next = reinterpret_cast<const float*>(tensors.data());
    for (const std::int64_t numel : numels) {
      from.push_back(next);
      next += numel;
    }
  }

  template <class T>
  void check_packed(float scale, bool with_facts) const {
    const std::vector<T> found = download<T>(flat.data(), layout.numel);
    const double rounding = std::is_same_v<T, float> ? 0 : 0x1p-8;
    double squares = 0;
    std::size_t at = 0;
    for (std::size_t i = 0; i < numels.size(); ++i) {
      for (std::int64_t j = 0; j < numels[i]; ++j) {
        const double wanted = scale * values[at++];
        const double value = static_cast<float>(found[static_cast<std::size_t>(layout.offsets[i] + j)]);
        require(std::abs(value - wanted) <= rounding * std::abs(wanted), "pack");
        squares += value * value;
      }
    }
    if (!with_facts) return;
    const std::vector<double> told = download<double>(facts.data(), 2);
    require(told[0] == 1 && std::abs(told[1] - squares) <= 1e-9 * squares, "facts of pack");
  }
};

void add_pack(const std::shared_ptr<Stream>& stream, const std::string& set, const std::vector<std::int64_t>& numels,
              DType dtype, bool facts) {
  const auto numel = static_cast<double>(std::accumulate(numels.begin(), numels.end(), std::int64_t{0}));
  const Work work{.bytes = numel * static_cast<double>(sizeof(float) + item_size(dtype))};
  add_kernel("pack/" + set + "/to " + name_of(dtype) + ", scaled" + (facts ? ", facts" : ""), work, stream,
             [stream, numels, dtype, facts]() -> Call {
               const auto packing = std::make_shared<Packing>(numels, dtype);
               auto call = [stream, packing, dtype, facts] {
                 cuda::FactsOut out;
                 if (facts) {
                   out = {reinterpret_cast<double*>(packing->facts.data()),
                          reinterpret_cast<double*>(packing->scratch.data())};
                 }
                 cuda::pack(packing->from, packing->numels, DType::kFloat32, packing->layout, dtype, 0.5,
                            packing->flat.data(), out, *stream);
               };
               call();
               check(cudaStreamSynchronize(*stream), "cudaStreamSynchronize");
               dispatch(dtype, [&]<class T>(Type<T>) { packing->template check_packed<T>(0.5F, facts); });
               return call;
             });
}

// Beside the product on the CPU, which has its own bench.
template <class T>
Call make_product(const std::shared_ptr<Stream>& stream, const BmmShape& s, DType dtype, bool transposed) {
  struct Operands {
    DeviceMemory a, b, c;
  };
  const std::vector<T> a = noise<T>(s.batch * s.m * s.k, 1);
  const std::vector<T> b = noise<T>(s.batch * s.k * s.n, 2);
  std::vector<T> c(static_cast<std::size_t>(s.batch * s.m * s.n));
  MatrixBatch left{a.data(), s.m * s.k, transposed ? 1 : s.k, transposed ? s.m : 1};
  MatrixBatch right{b.data(), s.k * s.n, transposed ? 1 : s.n, transposed ? s.k : 1};
  bmm(s, dtype, left, right, c.data(), serial_for);
  const std::shared_ptr<Operands> on_device(new Operands{
      DeviceMemory(a.size() * sizeof(T)), DeviceMemory(b.size() * sizeof(T)), DeviceMemory(c.size() * sizeof(T))});
  upload(on_device->a, a);
  upload(on_device->b, b);
  left.data = on_device->a.data();
  right.data = on_device->b.data();
  auto call = [stream, s, dtype, left, right, on_device] {
    cuda::bmm(s, dtype, left, right, on_device->c.data(), *stream);
  };
  call();
  check(cudaStreamSynchronize(*stream), "cudaStreamSynchronize");
  const std::vector<T> found = download<T>(on_device->c.data(), static_cast<std::int64_t>(c.size()));
  const double rounding = sizeof(T) == 8 ? 1e-14 : sizeof(T) == 4 ? 1e-5 : 1e-2;
  for (std::size_t i = 0; i < c.size(); ++i) {
    const auto wanted = static_cast<double>(static_cast<Accumulate<T>>(c[i]));
    const auto value = static_cast<double>(static_cast<Accumulate<T>>(found[i]));
    require(std::abs(value - wanted) <= rounding * static_cast<double>(s.k), "bmm");
  }
  return call;
}

void add_product(const std::shared_ptr<Stream>& stream, const BmmShape& s, DType dtype, bool transposed) {
  const std::string name = "bmm/" + std::to_string(s.m) + "x" + std::to_string(s.k) + "x" + std::to_string(s.n) +
                           ", batch " + std::to_string(s.batch) + "/" + name_of(dtype) +
                           (transposed ? ", transposed" : "");
  const auto batch = static_cast<double>(s.batch);
  const Work work{
      .bytes = batch * static_cast<double>(s.m * s.k + s.k * s.n + s.m * s.n) * static_cast<double>(item_size(dtype)),
      .operations = 2 * batch * static_cast<double>(s.m * s.k * s.n)};
  add_kernel(name, work, stream, [stream, s, dtype, transposed]() -> Call {
    return dispatch(dtype, [&]<class T>(Type<T>) { return make_product<T>(stream, s, dtype, transposed); });
  });
}

void add_all() {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  benchmark::AddCustomContext("gpu", device.name);
  benchmark::AddCustomContext("cuda",
                              std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10));
  const auto stream = std::make_shared<Stream>();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const bool facts : {false, true}) {
      add_pack(stream, "2000 tensors of 64", many_small_tensors(), dtype, facts);
      add_pack(stream, "transformer of 151 MB", transformer(12), dtype, facts);
    }
  }
  for (const std::int64_t side : {2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64}) {
    const std::int64_t batch = (std::int64_t{1} << 24) / (side * side);
    add_product(stream, {batch, side, side, side}, DType::kFloat32, false);
    add_product(stream, {batch, side, side, side}, DType::kFloat32, true);
    add_product(stream, {batch, side, side, side}, DType::kFloat16, false);
    add_product(stream, {batch, 1, side, side}, DType::kFloat32, false);
    add_product(stream, {batch, side, side, 1}, DType::kFloat32, false);
  }
}

}  // namespace

}  // namespace fastseq::bench

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cout << "bench_kernels: left out: there is no GPU\n";
    return 0;
  }
  return fastseq::bench::run(fastseq::bench::add_all, argc, argv);
}
