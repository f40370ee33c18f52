// Memory and events that processes share. A handle names the shared memory as /proc/PID/fd/N, so that another process
// of the same user maps the same bytes, as long as this one runs.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "engine/kernels/cuda/emulation/machine.h"

using namespace lockstep::emulation;

namespace {

constexpr unsigned kInterprocess = cudaEventInterprocess | cudaEventDisableTiming;

template <typename Handle>
cudaError_t Write(int fd, size_t bytes, Handle* handle) {
  *handle = {};
  std::snprintf(handle->reserved, sizeof(handle->reserved), "%d %d %zu", getpid(), fd, bytes);
  return cudaSuccess;
}

// The handle's bytes in a mapping of this process.
template <typename Handle>
cudaError_t Map(const Handle& handle, void** memory, size_t* bytes) {
  char text[sizeof(handle.reserved) + 1] = "";
  std::memcpy(text, handle.reserved, sizeof(handle.reserved));
  int pid = 0, number = 0;
  if (std::sscanf(text, "%d %d %zu", &pid, &number, bytes) != 3 || pid == getpid()) return cudaErrorInvalidValue;
  const std::string path = "/proc/" + std::to_string(pid) + "/fd/" + std::to_string(number);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return cudaErrorInvalidResourceHandle;  // the process that exported it is gone
  *memory = mmap(nullptr, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return *memory == MAP_FAILED ? cudaErrorMemoryAllocation : cudaSuccess;
}

// Shared memory of so many bytes; -1 where there is none.
int MakeShared(size_t bytes) {
  const int fd = memfd_create("lockstep-emulated-device", MFD_CLOEXEC);
  if (fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

// The allocation's pages become shared ones at the same place, with the same bytes.
cudaError_t Share(void* memory, Allocation* allocation) {
  const int fd = MakeShared(allocation->mapped);
  if (fd < 0) return cudaErrorMemoryAllocation;
  void* const view = mmap(nullptr, allocation->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (view == MAP_FAILED) return close(fd), cudaErrorMemoryAllocation;
  std::memcpy(view, memory, allocation->bytes);
  munmap(view, allocation->mapped);
  if (mmap(memory, allocation->mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != memory) {
    return close(fd), cudaErrorMemoryAllocation;
  }
  allocation->fd = fd;
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* memory) {
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  if (m.lost != cudaSuccess) return m.lost;
  const auto found = m.allocations.find(memory);
  if (found == m.allocations.end()) return cudaErrorInvalidValue;
  Allocation& allocation = found->second;
  if (allocation.fd < 0) {
    if (const cudaError_t error = Share(memory, &allocation); error != cudaSuccess) return error;
  }
  return Write(allocation.fd, allocation.mapped, handle);
}

cudaError_t cudaIpcOpenMemHandle(void** memory, cudaIpcMemHandle_t handle, unsigned) {
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  if (m.lost != cudaSuccess) return m.lost;
  size_t bytes = 0;
  const cudaError_t error = Map(handle, memory, &bytes);
  if (error == cudaSuccess) m.opened[*memory] = bytes;
  return error;
}

cudaError_t cudaIpcCloseMemHandle(void* memory) {
  DrainAll();
  auto& m = TheMachine();
  const Guard guard(m.mutex);
  const auto found = m.opened.find(memory);
  if (found == m.opened.end()) return cudaErrorInvalidValue;
  munmap(memory, found->second);
  m.opened.erase(found);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st;
  (*event)->flags = flags;
  if ((flags & cudaEventInterprocess) == 0) return cudaSuccess;
  const int fd = (flags & kInterprocess) == kInterprocess ? MakeShared(sizeof(EventPage)) : -1;
  void* const page = fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(EventPage), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    if (fd >= 0) close(fd);
    delete std::exchange(*event, nullptr);
    return cudaErrorInvalidValue;
  }
  (*event)->page = static_cast<EventPage*>(page);
  (*event)->fd = fd;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event->page != nullptr) {
    // Work on a stream may still mark it.
    if (event->queue != nullptr) Drain(*event->queue, event->after);
    munmap(event->page, sizeof(EventPage));
    if (event->fd >= 0) close(event->fd);
  }
  delete event;
  return cudaSuccess;
}

cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* handle, cudaEvent_t event) {
  if (event->page == nullptr || event->fd < 0) return cudaErrorInvalidResourceHandle;
  return Write(event->fd, sizeof(EventPage), handle);
}

cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle) {
  if (const cudaError_t lost = Lost(); lost != cudaSuccess) return lost;
  size_t bytes = 0;
  void* page = nullptr;
  const cudaError_t error = Map(handle, &page, &bytes);
  if (error != cudaSuccess) return error;
  *event = new CUevent_st;
  (*event)->flags = kInterprocess;
  (*event)->page = static_cast<EventPage*>(page);
  return cudaSuccess;
}
