// vector_math.h's functions of one number, for code that a device runs, too.
#pragma once

#include <cmath>

// Marks functions that CUDA's compiler also compiles for the device.
#ifdef __CUDACC__
#define FASTSEQ_DEVICE __host__ __device__
#else
#define FASTSEQ_DEVICE
#endif

namespace fastseq::simd {

FASTSEQ_DEVICE inline void sigmoid(float& x) { x = 1 / (1 + std::exp(-x)); }
FASTSEQ_DEVICE inline void sigmoid(double& x) { x = 1 / (1 + std::exp(-x)); }
FASTSEQ_DEVICE inline void tanh(float& x) { x = std::tanh(x); }
FASTSEQ_DEVICE inline void tanh(double& x) { x = std::tanh(x); }

}  // namespace fastseq::simd
