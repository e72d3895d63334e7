// Memory and events that other processes can open.
#pragma once

#include <cstddef>

#include "streams.h"

namespace cuda_on_host {

// Where another process finds memory of this one.
struct Address {
  int process;
  int descriptor;
  std::size_t offset;
  std::size_t bytes;
};

// Memory without a file's name, not reserved; null: there is none.
struct SharedFile {
  void* memory;
  int descriptor;
};
SharedFile make_shared_file(const char* name, std::size_t bytes, int protection);

// Null: it cannot be opened; this process' own cannot either, as in CUDA.
std::byte* open_memory(const Address& address);
void close_memory(std::byte* memory, std::size_t bytes);

SharedEvent* new_shared_event();
Address address_of(const SharedEvent* event);

}  // namespace cuda_on_host
