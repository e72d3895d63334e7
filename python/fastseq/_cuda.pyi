"""The operators' CUDA kernels, registered on import; built from csrc/torch/cuda_module.cpp."""
