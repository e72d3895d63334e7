// GPUs that kernels are, and are not, built for.
#include "cuda/support.h"

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "check.h"
#include "cuda/bmm_kernels.h"
#ifdef CUDA_ON_HOST
#include "device.h"
#endif

namespace fastseq {

TEST(this_gpu_runs_the_kernels) {
  CHECK_EQ(cuda::obstacle(), "");
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

#ifdef CUDA_ON_HOST
TEST(a_gpu_of_another_kind_is_told_with_what_to_do) {
  cuda_on_host::set_foreign(true);
  const char* words =
      "no kernel image is available for execution on the device; fastseq was built for other GPUs: build it with "
      "CMAKE_CUDA_ARCHITECTURES=native on this machine";
  CHECK_EQ(cuda::obstacle(), words);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
  try {
    cuda::bmm({1, 1, 1, 1}, DType::kFloat32, {}, {}, nullptr, nullptr);
    CHECK(false);
  } catch (const std::runtime_error& error) {
    CHECK_EQ(std::string(error.what()), std::string("small_bmm_kernel: launch failed: ") + words);
  }
  cuda_on_host::set_foreign(false);
}
#endif

}  // namespace fastseq
