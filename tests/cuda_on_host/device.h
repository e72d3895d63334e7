// A GPU on the host: what its parts tell each other, and what tests ask of it.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>

// What NCCL on the host, a library of its own, finds in the program that loads it.
#define VISIBLE __attribute__((visibility("default")))

namespace cuda_on_host {

// For tests.

// What is drawn from now on: the order of threads, blocks and streams.
void seed(std::uint64_t seed);
// What a wait lets run: whatever may, in any order; or only what must have run.
enum class Policy { kRandom, kLate };
void set_policy(Policy policy);
// Puts a function into a stream's order, which may touch device memory.
VISIBLE void enqueue(cudaStream_t stream, std::function<void()> function);
// Makes the stream wait until others make it true.
VISIBLE void wait_until(cudaStream_t stream, std::function<bool()> elsewhere);
// While one lives, streams run by themselves, as they do on a GPU: what another process does may need it.
class Running {
 public:
  Running();
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  std::atomic<bool> ended_{false};
  std::thread thread_;
};
// Where memory of a device is.
int device_of(const void* pointer);
// Which GPU this process says it has. All have the same at first.
void set_gpu(char number);
// Whether kernels are built for another GPU, so that none can be launched.
void set_foreign(bool foreign);
// How often the host has waited for the device.
std::int64_t host_waits();

// For the parts.

constexpr int kDevices = 2;
// That of this thread's calls.
int current_device();

// Tells what is wrong, and ends the program.
[[noreturn]] void fail(const std::string& what);
std::uint64_t draw_seed();

// Runs a grid's blocks.
void run_grid(const std::function<void()>& body, dim3 grid, dim3 block, std::size_t shared_bytes);

// While one lives, device memory can be touched.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};
bool is_device(const void* pointer, std::size_t bytes);
bool is_pinned(const void* pointer, std::size_t bytes);

// The thread's last error, for cudaGetLastError; returns it.
cudaError_t error(cudaError_t code);

}  // namespace cuda_on_host
