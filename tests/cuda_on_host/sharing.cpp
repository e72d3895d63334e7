#include "sharing.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

#include "device.h"

namespace cuda_on_host {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kEvents = 1U << 16;

// All events of this process that others may open, one after the other.
struct Events {
  SharedFile file = make_shared_file("events", kEvents * sizeof(SharedEvent), PROT_READ | PROT_WRITE);
  std::atomic<std::size_t> used{0};

  SharedEvent* first() const { return static_cast<SharedEvent*>(file.memory); }
  static Events& instance() {
    static Events events;
    return events;
  }
};

}  // namespace

SharedFile make_shared_file(const char* name, std::size_t bytes, int protection) {
  const int descriptor = memfd_create(name, MFD_CLOEXEC);
  if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) fail("no memory that can be shared");
  void* const memory = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, descriptor, 0);
  if (memory == MAP_FAILED)
    fail("no address space for device memory");  // NOLINT(performance-no-int-to-ptr): MAP_FAILED
  return {memory, descriptor};
}

std::byte* open_memory(const Address& address) {
  if (address.process == getpid()) return nullptr;
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", address.process, address.descriptor);
  const int descriptor = open(path, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  const std::size_t before = address.offset % kPage;
  void* const memory = mmap(nullptr, before + address.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor,
                            static_cast<off_t>(address.offset - before));
  close(descriptor);
  return memory == MAP_FAILED ? nullptr
                              : static_cast<std::byte*>(memory) + before;  // NOLINT(performance-no-int-to-ptr)
}

void close_memory(std::byte* memory, std::size_t bytes) {
  const std::size_t before = reinterpret_cast<std::uintptr_t>(memory) % kPage;
  munmap(memory - before, before + bytes);
}

SharedEvent* new_shared_event() {
  Events& events = Events::instance();
  const std::size_t index = events.used++;
  if (index >= kEvents) fail("too many events between processes");
  return events.first() + index;
}

Address address_of(const SharedEvent* event) {
  const Events& events = Events::instance();
  const auto offset = static_cast<std::size_t>(event - events.first()) * sizeof(SharedEvent);
  return {getpid(), events.file.descriptor, offset, sizeof(SharedEvent)};
}

}  // namespace cuda_on_host
