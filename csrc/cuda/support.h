// Whether a GPU can run the kernels of this build.
#pragma once

#include <string>

namespace fastseq::cuda {

// Why the current device cannot, and what to do; empty if it can.
std::string obstacle();

}  // namespace fastseq::cuda
