// Device memory, which the host cannot touch unless something runs on the device; memory of the host that CUDA knows.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "device.h"
#include "sanitizers.h"
#include "sharing.h"

namespace cuda_on_host {

namespace {

constexpr std::size_t kReserved = std::size_t{1} << 30;
constexpr std::size_t kAlignment = 256;  // as cudaMalloc's
constexpr std::size_t kGap = 256;        // between allocations, poisoned for address sanitizer

using Ranges = std::map<std::byte*, std::size_t>;

bool holds(const Ranges& ranges, const void* pointer, std::size_t bytes) {
  auto* const first = static_cast<std::byte*>(const_cast<void*>(pointer));
  auto it = ranges.upper_bound(first);
  if (it == ranges.begin()) return false;
  --it;
  return first + bytes <= it->first + it->second;
}

void poison([[maybe_unused]] void* from, [[maybe_unused]] std::size_t bytes) {
#ifdef CUDA_ON_HOST_ASAN
  __asan_poison_memory_region(from, bytes);
#endif
}
void unpoison([[maybe_unused]] void* from, [[maybe_unused]] std::size_t bytes) {
#ifdef CUDA_ON_HOST_ASAN
  __asan_unpoison_memory_region(from, bytes);
#endif
}

class Memory {
 public:
  static Memory& instance() {
    static Memory memory;
    return memory;
  }

  void open() {
    const std::scoped_lock lock(mutex_);
    if (users_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::scoped_lock lock(mutex_);
    if (--users_ == 0) protect(PROT_NONE);
  }

  // Null: none is left. `before`: what was freed at the same place.
  void* allocate(std::size_t bytes, std::vector<void*>& before) {
    const DeviceAccess access;
    const std::scoped_lock lock(mutex_);
    const std::size_t taken = (bytes + kGap + kAlignment - 1) / kAlignment * kAlignment;
    std::byte* at = base_;
    for (const auto& [begin, size] : device_) {  // the first gap that is large enough
      if (static_cast<std::size_t>(begin - at) >= taken) break;
      at = begin + (size + kGap + kAlignment - 1) / kAlignment * kAlignment;
    }
    if (static_cast<std::size_t>(base_ + kReserved - at) < taken) return nullptr;
    const auto first = freed_.lower_bound(at), last = freed_.lower_bound(at + taken);
    before.assign(first, last);
    freed_.erase(first, last);
    device_[at] = bytes;
    number_of_[at] = current_device();
    unpoison(at, bytes);
    std::memset(at, 0xa5, bytes);  // shows where it is read before it is written
    return at;
  }

  bool free(void* pointer) {
    const DeviceAccess access;
    const std::scoped_lock lock(mutex_);
    const auto it = device_.find(static_cast<std::byte*>(pointer));
    if (it == device_.end()) return false;
    std::memset(it->first, 0x5a, it->second);
    poison(it->first, it->second);
    number_of_.erase(it->first);
    freed_.insert(it->first);
    device_.erase(it);
    return true;
  }

  int device_of(const void* pointer) {
    const std::scoped_lock lock(mutex_);
    auto* const at = static_cast<std::byte*>(const_cast<void*>(pointer));
    return std::prev(number_of_.upper_bound(at))->second;
  }

  bool is_device(const void* pointer, std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    return holds(device_, pointer, bytes) || holds(imported_, pointer, bytes);
  }

  // False: no memory begins there.
  bool find(void* pointer, Address& address) {
    const std::scoped_lock lock(mutex_);
    const auto it = device_.find(static_cast<std::byte*>(pointer));
    if (it == device_.end()) return false;
    address = {getpid(), file_.descriptor, static_cast<std::size_t>(it->first - base_), it->second};
    return true;
  }
  void* import(const Address& address) {
    std::byte* const memory = open_memory(address);
    const std::scoped_lock lock(mutex_);
    if (memory != nullptr) imported_[memory] = address.bytes;
    return memory;
  }
  bool release(void* pointer) {
    const std::scoped_lock lock(mutex_);
    const auto it = imported_.find(static_cast<std::byte*>(pointer));
    if (it == imported_.end()) return false;
    close_memory(it->first, it->second);
    imported_.erase(it);
    return true;
  }
  bool is_pinned(const void* pointer, std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    return holds(pinned_, pointer, bytes);
  }
  bool pin(void* pointer, std::size_t bytes) {
    const std::scoped_lock lock(mutex_);
    if (holds(pinned_, pointer, 1)) return false;
    pinned_[static_cast<std::byte*>(pointer)] = bytes;
    return true;
  }
  bool unpin(void* pointer) {
    const std::scoped_lock lock(mutex_);
    return pinned_.erase(static_cast<std::byte*>(pointer)) == 1;
  }

 private:
  Memory() {
    file_ = make_shared_file("device memory", kReserved, PROT_NONE);
    base_ = static_cast<std::byte*>(file_.memory);
    poison(base_, kReserved);
  }
  void protect(int allowed) const {
    if (mprotect(base_, kReserved, allowed) != 0) fail("mprotect failed");
  }

  std::mutex mutex_;
  std::byte* base_ = nullptr;
  SharedFile file_{};
  int users_ = 0;
  Ranges device_;
  std::set<std::byte*> freed_;           // and not given out again
  std::map<std::byte*, int> number_of_;  // of the device
  Ranges imported_;
  Ranges pinned_;
};

}  // namespace

DeviceAccess::DeviceAccess() {
  const Quiet quiet;
  Memory::instance().open();
}
DeviceAccess::~DeviceAccess() {
  const Quiet quiet;
  Memory::instance().close();
}

bool is_device(const void* pointer, std::size_t bytes) {
  const Quiet quiet;
  return Memory::instance().is_device(pointer, bytes);
}
bool is_pinned(const void* pointer, std::size_t bytes) {
  const Quiet quiet;
  return Memory::instance().is_pinned(pointer, bytes);
}

int device_of(const void* pointer) {
  const Quiet quiet;
  return Memory::instance().device_of(pointer);
}

}  // namespace cuda_on_host

using cuda_on_host::acquire;
using cuda_on_host::Address;
using cuda_on_host::error;
using cuda_on_host::Memory;
using cuda_on_host::Quiet;
using cuda_on_host::release;

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  std::vector<void*> before;
  {
    const Quiet quiet;
    *pointer = bytes == 0 ? nullptr : Memory::instance().allocate(bytes, before);
  }
  for (void* const freed : before) acquire(freed);  // another rank may have had it
  return bytes == 0 || *pointer != nullptr ? cudaSuccess : error(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  if (const cudaError_t code = cudaDeviceSynchronize(); code != cudaSuccess) return code;
  release(pointer);
  const Quiet quiet;
  return Memory::instance().free(pointer) ? cudaSuccess : error(cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned /*flags*/) {
  const Quiet quiet;
  if (bytes == 0 || pointer == nullptr) return error(cudaErrorInvalidValue);
  return Memory::instance().pin(pointer, bytes) ? cudaSuccess : error(cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void* pointer) {
  if (const cudaError_t code = cudaDeviceSynchronize(); code != cudaSuccess) return code;
  const Quiet quiet;
  return Memory::instance().unpin(pointer) ? cudaSuccess : error(cudaErrorInvalidValue);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  const Quiet quiet;
  Address address{};
  if (!Memory::instance().find(memory, address)) return error(cudaErrorInvalidValue);
  std::memcpy(handle->reserved, &address, sizeof address);
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned /*flags*/) {
  const Quiet quiet;
  Address address{};
  std::memcpy(&address, handle.reserved, sizeof address);
  *memory = Memory::instance().import(address);
  return *memory != nullptr ? cudaSuccess : error(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaIpcCloseMemHandle(void* memory) {
  if (const cudaError_t code = cudaDeviceSynchronize(); code != cudaSuccess) return code;
  const Quiet quiet;
  return Memory::instance().release(memory) ? cudaSuccess : error(cudaErrorInvalidValue);
}
