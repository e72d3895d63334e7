// The calls of CUDA's runtime, but those of memory.
#include <cuda_runtime.h>

#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "device.h"
#include "sharing.h"
#include "streams.h"

namespace cuda_on_host {

namespace {

std::atomic<std::int64_t> g_host_waits{0};
std::atomic<int> g_captures{0};
std::atomic<char> g_gpu{0};
std::atomic<bool> g_foreign{false};
thread_local bool t_in_stream = false;
thread_local int t_device = 0;
thread_local cudaError_t t_error = cudaSuccess;

void check_place() {
  if (t_in_stream) fail("a function in a stream's order must not call CUDA");
}

// What waits is not allowed while a graph is captured.
cudaError_t check_wait() {
  check_place();
  if (g_captures.load() != 0) return error(cudaErrorStreamCaptureUnsupported);
  ++g_host_waits;
  return cudaSuccess;
}

// Whether what another process has last recorded has come.
std::function<bool()> has_come(const Event& imported) {
  return [shared = imported.shared, wanted = imported.shared->recorded.load()] { return shared->passed >= wanted; };
}

bool is_capturing(Stream* stream) { return or_default(stream)->capture != nullptr; }

}  // namespace

cudaError_t error(cudaError_t code) {
  t_error = code;
  return code;
}

int current_device() { return t_device; }

void set_gpu(char number) { g_gpu = number; }

std::int64_t host_waits() { return g_host_waits.load(); }

void enqueue(cudaStream_t stream, std::function<void()> function) {
  push(stream, [function = std::move(function)] {
    t_in_stream = true;
    function();
    t_in_stream = false;
  });
}

void wait_until(cudaStream_t stream, std::function<bool()> elsewhere) { push_wait(stream, std::move(elsewhere)); }
void set_foreign(bool foreign) { g_foreign.store(foreign); }

cudaError_t check_image() { return g_foreign.load() ? error(cudaErrorNoKernelImageForDevice) : cudaSuccess; }

cudaError_t enqueue_kernel(dim3 grid, dim3 block, std::size_t shared_bytes, Stream* stream,
                           std::function<void()> body) {
  check_place();
  if (const cudaError_t code = check_image(); code != cudaSuccess) return code;
  if (stream != nullptr && stream->device != t_device) return error(cudaErrorInvalidResourceHandle);
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || block.z > 64 ||
      grid.x > 0x7fffffffU || grid.y > 65535 || grid.z > 65535 || shared_bytes > std::size_t{48} * 1024) {
    return error(cudaErrorInvalidConfiguration);
  }
  push(stream, [grid, block, shared_bytes, body = std::move(body)] { run_grid(body, grid, block, shared_bytes); });
  return cudaSuccess;
}

}  // namespace cuda_on_host

using namespace cuda_on_host;  // NOLINT(google-build-using-namespace): these are its calls

cudaError_t cudaGetLastError() { return std::exchange(t_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "part or all of the requested memory range is already mapped";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureUnjoined:
      return "capture sequence contains streams that have not joined the original stream";
    case cudaErrorStreamCaptureIsolation:
      return "dependency created on uncaptured work in another stream";
    default:
      return "invalid argument";
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = t_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return error(cudaErrorInvalidValue);
  t_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  properties->uuid.bytes[0] = g_gpu.load();
  properties->uuid.bytes[1] = static_cast<char>(device);
  return device >= 0 && device < kDevices ? cudaSuccess : error(cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  check_place();
  if (bytes == 0) return cudaSuccess;
  const bool from_device = is_device(from, bytes);
  const bool to_device = is_device(to, bytes);
  if ((kind == cudaMemcpyHostToDevice && (from_device || !to_device)) ||
      (kind == cudaMemcpyDeviceToHost && (!from_device || to_device)) ||
      (kind == cudaMemcpyDeviceToDevice && !(from_device && to_device))) {
    return error(cudaErrorInvalidValue);
  }
  const bool pageable = (!from_device && !is_pinned(from, bytes)) || (!to_device && !is_pinned(to, bytes));
  if (pageable && is_capturing(stream)) return error(cudaErrorStreamCaptureUnsupported);
  if (pageable && to_device) {  // staged before the call returns
    auto staged = std::make_shared<std::vector<char>>(bytes);
    std::memcpy(staged->data(), from, bytes);
    push(stream, [to, staged = std::move(staged)] { std::memcpy(to, staged->data(), staged->size()); });
    return cudaSuccess;
  }
  push(stream, [to, from, bytes] { std::memcpy(to, from, bytes); });
  return pageable ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  check_place();
  if (!is_device(to, bytes)) return error(cudaErrorInvalidValue);
  push(stream, [=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  check_place();
  *stream = new Stream;
  (*stream)->device = t_device;
  add(*stream);
  return cudaSuccess;
}

// Does not wait: what the stream still has is done, then nobody needs it.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  check_place();
  remove(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t code = check_wait(); code != cudaSuccess) return code;
  wait_for(push_mark(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  check_place();
  if (is_capturing(stream)) return error(cudaErrorStreamCaptureUnsupported);
  return is_idle(stream) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  check_place();
  Stream& own = *or_default(stream);
  if (event->capture != nullptr) {
    if (event->capture->ended) return error(cudaErrorInvalidValue);
    if (own.capture != nullptr && own.capture != event->capture) return error(cudaErrorStreamCaptureIsolation);
    own.capture = event->capture;  // the stream joins it
    std::vector<std::size_t>& ends = own.capture->ends[&own];
    ends.insert(ends.end(), event->ends.begin(), event->ends.end());
    return cudaSuccess;
  }
  if (own.capture != nullptr) return error(cudaErrorStreamCaptureIsolation);
  if (event->imported) {
    push_wait(stream, has_come(*event));
    return cudaSuccess;
  }
  if (event->mark != nullptr) push_wait(stream, event->mark);  // else it was never recorded
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
  check_place();
  enqueue(stream, [=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const bool shared = (flags & cudaEventInterprocess) != 0;
  if (shared && (flags & cudaEventDisableTiming) == 0) return error(cudaErrorInvalidValue);
  *event = new Event;
  (*event)->device = t_device;
  if (shared) (*event)->shared = new_shared_event();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event->imported) close_memory(reinterpret_cast<std::byte*>(event->shared), sizeof(SharedEvent));
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  check_place();
  Stream& own = *or_default(stream);
  if (own.device != event->device) return error(cudaErrorInvalidResourceHandle);
  if (event->shared != nullptr) {
    if (event->imported || own.capture != nullptr) return error(cudaErrorInvalidResourceHandle);
    const std::int64_t number = ++event->shared->recorded;
    push(stream, [shared = event->shared, number] { shared->passed = number; });
  }
  event->mark = own.capture == nullptr ? push_mark(stream) : nullptr;
  event->capture = own.capture;
  event->ends = own.capture == nullptr ? std::vector<std::size_t>{} : own.capture->ends[&own];
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->capture != nullptr) return error(cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t code = check_wait(); code != cudaSuccess) return code;
  if (event->imported) {
    for (const auto come = has_come(*event); !come();) std::this_thread::yield();
  }
  if (event->mark != nullptr) wait_for(event->mark);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  check_place();
  if (event->capture != nullptr) return error(cudaErrorStreamCaptureUnsupported);
  if (event->imported) return has_come(*event)() ? cudaSuccess : cudaErrorNotReady;
  return event->mark == nullptr || has_passed(event->mark) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event) {
  if (event->shared == nullptr || event->imported) return error(cudaErrorInvalidResourceHandle);
  const Address address = address_of(event->shared);
  std::memcpy(handle->reserved, &address, sizeof address);
  return cudaSuccess;
}

cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle) {
  Address address{};
  std::memcpy(&address, handle.reserved, sizeof address);
  std::byte* const memory = open_memory(address);
  if (memory == nullptr) return error(cudaErrorInvalidResourceHandle);
  *event = new Event;
  (*event)->shared = reinterpret_cast<SharedEvent*>(memory);
  (*event)->imported = true;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (const cudaError_t code = check_wait(); code != cudaSuccess) return code;
  wait_for_all();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  check_place();
  if (stream == nullptr) return error(cudaErrorStreamCaptureUnsupported);
  if (stream->capture != nullptr) return error(cudaErrorInvalidValue);
  stream->capture = std::make_shared<Capture>();
  stream->capture->origin = stream;
  ++g_captures;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  check_place();
  *graph = nullptr;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (capture == nullptr || capture->origin != stream) return error(cudaErrorInvalidValue);
  // Nodes that lead to the end of the stream: the others have not joined it.
  std::vector<char> joined(capture->graph.nodes.size());
  for (const std::size_t i : capture->ends[stream]) joined[i] = 1;
  for (std::size_t i = joined.size(); i-- > 0;) {
    if (joined[i] == 0) continue;
    for (const std::size_t before : capture->graph.nodes[i].after) joined[before] = 1;
  }
  for (const auto& [other, ends] : capture->ends) other->capture.reset();
  stream->capture.reset();
  capture->ended = true;
  --g_captures;
  for (const char one : joined) {
    if (one == 0) return error(cudaErrorStreamCaptureUnjoined);
  }
  *graph = new Graph(std::move(capture->graph));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long /*flags*/) {
  *exec = new Graph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  check_place();
  push(stream, [exec] { exec->run(); });
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
