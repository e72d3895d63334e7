// What Python tests need of CUDA on the host: called through ctypes.
#include "device.h"

extern "C" {
// Tensors of torch's CPU stand for those of a GPU, and read its memory: it is open. Streams run by themselves.
VISIBLE void cuda_on_host_start() {
  [[maybe_unused]] static const auto* const open = new cuda_on_host::DeviceAccess;
  [[maybe_unused]] static const auto* const running = new cuda_on_host::Running;
}
VISIBLE int cuda_on_host_synchronize() { return cudaDeviceSynchronize(); }
VISIBLE void cuda_on_host_set_gpu(int number) { cuda_on_host::set_gpu(static_cast<char>(number)); }
VISIBLE long cuda_on_host_waits() { return cuda_on_host::host_waits(); }
// This process' MPI library can read the memory, too.
VISIBLE int MPIX_Query_cuda_support() { return 1; }
}
