// The GPU on the host: what it allows, what it refuses, and what it finds.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "check.h"
#include "device.h"
#include "device_buffer.h"

namespace cuda_on_host {

namespace {

using fastseq::testing::DeviceBuffer;
using fastseq::testing::must;
using StreamObject = fastseq::cuda::Stream;

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, cudaStream_t stream, Args... args) {
  const cudaLaunchConfig_t config{.gridDim = grid, .blockDim = block, .dynamicSmemBytes = 256, .stream = stream};
  return cudaLaunchKernelEx(&config, kernel, args...);
}

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;  // reports what else shows as a wrong result, and knows no threads after fork
#else
constexpr bool kThreadSanitizer = false;
#endif

// Whether a program that does this is ended by a signal.
bool dies(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

void set_kernel(int* to, int value) { *to = value; }
void copy_kernel(int* to, const int* from) { *to = *from; }
void add_one_kernel(int* to) { *to += 1; }

void reverse_kernel(int* values, bool meets) {
  __shared__ int shared[64];
  shared[threadIdx.x] = values[threadIdx.x];
  if (meets) __syncthreads();
  values[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

void sum_kernel(int* sums, int* total) {
  int value = static_cast<int>(threadIdx.x);
  for (unsigned width = 16; width > 0; width /= 2) value += __shfl_down_sync(0xffffffffU, value, width);
  if (threadIdx.x % 32 == 0 && blockIdx.x == 0) sums[threadIdx.x / 32] = value;
  atomicAdd(total, static_cast<int>(threadIdx.x + blockIdx.x));
}

void half_meets_kernel() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

void half_shuffles_kernel(int* to) {
  if (threadIdx.x < 16) *to = __shfl_down_sync(0xffffffffU, 1, 1);
}

// Without the barrier, some order of the threads gives another result.
bool always_reverses(bool meets) {
  std::vector<int> values(64);
  std::iota(values.begin(), values.end(), 0);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const DeviceBuffer<int> device(values);
    must(launch(reverse_kernel, 1, 64, nullptr, device.data(), meets));
    const std::vector<int> found = device.read(nullptr);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (found[i] != values[63 - i]) return false;
    }
  }
  return true;
}

// What a copy on one stream of what another writes finds, in many orders.
bool always_follows(bool waits) {
  const StreamObject writer;
  const StreamObject reader;
  cudaEvent_t written = nullptr;
  must(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
  bool always = true;
  for (int value = 1; value <= 20; ++value) {
    const DeviceBuffer<int> from(std::vector<int>{0});
    const DeviceBuffer<int> to(std::vector<int>{0});
    must(launch(set_kernel, 1, 1, writer, from.data(), value));
    must(cudaEventRecord(written, writer));
    if (waits) must(cudaStreamWaitEvent(reader, written));
    must(launch(copy_kernel, 1, 1, reader, to.data(), static_cast<const int*>(from.data())));
    always = always && to.read(reader)[0] == value;
  }
  must(cudaEventDestroy(written));
  return always;
}

}  // namespace

TEST(streams_and_events_belong_to_their_device) {
  CHECK_EQ(cudaSetDevice(2), cudaErrorInvalidValue);
  cudaStream_t first{};
  cudaStream_t second{};
  cudaEvent_t event{};
  must(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
  must(cudaSetDevice(1));
  must(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
  must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  CHECK_EQ(cudaEventRecord(event, first), cudaErrorInvalidResourceHandle);
  must(cudaEventRecord(event, second));
  must(cudaStreamWaitEvent(first, event, 0));  // may be another device's
  int device = 0;
  must(cudaGetDevice(&device));
  CHECK_EQ(device, 1);
  must(cudaSetDevice(0));
  must(cudaEventDestroy(event));
  must(cudaStreamDestroy(first));
  must(cudaStreamDestroy(second));
}

// Thread sanitizer knows of no other order between these threads.
TEST(memory_that_one_thread_frees_another_one_can_have) {
  std::atomic<void*> freed{nullptr};
  const auto write = [](void* memory) {
    cudaStream_t stream{};
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    must(cudaMemsetAsync(memory, 1, 1024, stream));
    must(cudaStreamSynchronize(stream));
    must(cudaStreamDestroy(stream));
  };
  std::thread first([&] {
    void* memory = nullptr;
    must(cudaMalloc(&memory, 1024));
    write(memory);
    must(cudaFree(memory));
    freed.store(memory, std::memory_order_relaxed);
  });
  std::thread second([&] {
    while (freed.load(std::memory_order_relaxed) == nullptr) std::this_thread::yield();
    void* memory = nullptr;
    must(cudaMalloc(&memory, 1024));
    CHECK_EQ(memory, freed.load(std::memory_order_relaxed));
    write(memory);
    must(cudaFree(memory));
  });
  first.join();
  second.join();
}

TEST(threads_meet_at_barriers_and_else_do_not) {
  CHECK(always_reverses(true));
  if (!kThreadSanitizer) CHECK(!always_reverses(false));
}

TEST(shuffles_and_atomics) {
  const DeviceBuffer<int> sums(std::vector<int>(2));
  const DeviceBuffer<int> total(std::vector<int>(1));
  must(launch(sum_kernel, 3, 64, nullptr, sums.data(), total.data()));
  CHECK_EQ(total.read(nullptr)[0], 3 * 64 * 63 / 2 + 64 * 3);
  CHECK_EQ(sums.read(nullptr)[0], 31 * 32 / 2);
  CHECK_EQ(sums.read(nullptr)[1], 31 * 32 / 2 + 32 * 32);
}

TEST(barriers_that_not_all_reach_end_the_program) {
  const auto run = [](auto kernel, auto... args) {
    return dies([=] {
      must(launch(kernel, 1, 32, nullptr, args...));
      must(cudaStreamSynchronize(nullptr));
    });
  };
  if (kThreadSanitizer) return;
  CHECK(run(half_meets_kernel));
  CHECK(run(half_shuffles_kernel, static_cast<int*>(nullptr)));
}

TEST(the_host_cannot_touch_device_memory) {
  const DeviceBuffer<int> device(std::vector<int>{7});
  CHECK(dies([&] { *device.data() = 1; }));
  CHECK(dies([&] {
    const volatile int found = *device.data();
    (void)found;
  }));
  CHECK_EQ(device.read(nullptr)[0], 7);
}

TEST(streams_follow_each_other_only_where_they_wait) {
  for (const Policy policy : {Policy::kRandom, Policy::kLate}) {
    set_policy(policy);
    CHECK(always_follows(true));
    if (!kThreadSanitizer) CHECK(!always_follows(false));
  }
  set_policy(Policy::kRandom);
}

TEST(nothing_runs_before_it_is_awaited) {
  const StreamObject stream;
  std::atomic<int> ran = 0;
  enqueue(stream, [&] { ran = 1; });
  CHECK_EQ(ran.load(), 0);
  CHECK_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  const std::int64_t before = host_waits();
  must(cudaStreamSynchronize(stream));
  CHECK_EQ(ran.load(), 1);
  CHECK_EQ(host_waits(), before + 1);
  CHECK_EQ(cudaStreamQuery(stream), cudaSuccess);
}

TEST(copies_from_pinned_memory_read_it_late_and_others_at_once) {
  const StreamObject stream;
  std::vector<int> host{1};
  const DeviceBuffer<int> device(1);
  for (const bool pinned : {false, true}) {
    host[0] = 1;
    if (pinned) must(cudaHostRegister(host.data(), sizeof(int), cudaHostRegisterDefault));
    must(cudaMemcpyAsync(device.data(), host.data(), sizeof(int), cudaMemcpyHostToDevice, stream));
    if (!pinned || !kThreadSanitizer) host[0] = 2;  // else it is a race, and found
    CHECK_EQ(device.read(stream)[0], pinned ? host[0] : 1);
  }
  CHECK_EQ(cudaHostRegister(host.data(), sizeof(int), 0), cudaErrorHostMemoryAlreadyRegistered);
  must(cudaHostUnregister(host.data()));
  CHECK_EQ(cudaHostUnregister(host.data()), cudaErrorInvalidValue);
  CHECK_EQ(cudaMemcpyAsync(host.data(), host.data(), sizeof(int), cudaMemcpyHostToDevice, stream),
           cudaErrorInvalidValue);
}

TEST(launches_beyond_the_limits_are_refused) {
  int* const none = nullptr;
  CHECK_EQ(launch(set_kernel, 0, 1, nullptr, none, 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(launch(set_kernel, 1, 1025, nullptr, none, 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(launch(set_kernel, dim3(1, 65536), 1, nullptr, none, 0), cudaErrorInvalidConfiguration);
  CHECK_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(graphs_run_when_they_are_launched_and_keep_what_is_ordered) {
  const StreamObject stream;
  const StreamObject side;
  cudaEvent_t fork = nullptr;
  cudaEvent_t join = nullptr;
  must(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
  must(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
  const DeviceBuffer<int> a(std::vector<int>{0});
  const DeviceBuffer<int> b(std::vector<int>{0});
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  must(launch(add_one_kernel, 1, 1, stream, a.data()));
  must(cudaEventRecord(fork, stream));
  must(cudaStreamWaitEvent(side, fork));
  must(launch(copy_kernel, 1, 1, side, b.data(), static_cast<const int*>(a.data())));
  CHECK_EQ(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
  must(cudaEventRecord(join, side));
  must(cudaStreamWaitEvent(stream, join));
  must(launch(add_one_kernel, 1, 1, stream, a.data()));
  cudaGraph_t graph = nullptr;
  must(cudaStreamEndCapture(stream, &graph));
  CHECK_EQ(a.read(stream)[0], 0);
  cudaGraphExec_t exec = nullptr;
  must(cudaGraphInstantiate(&exec, graph, 0));
  for (int replay = 0; replay < 5; ++replay) {
    must(cudaGraphLaunch(exec, stream));
    CHECK_EQ(b.read(stream)[0], 2 * replay + 1);
    CHECK_EQ(a.read(stream)[0], 2 * replay + 2);
  }
  must(cudaGraphExecDestroy(exec));
  must(cudaGraphDestroy(graph));

  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  must(cudaEventRecord(fork, stream));
  must(cudaStreamWaitEvent(side, fork));
  must(launch(add_one_kernel, 1, 1, side, b.data()));
  CHECK_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
  must(cudaEventDestroy(fork));
  must(cudaEventDestroy(join));
}

}  // namespace cuda_on_host
