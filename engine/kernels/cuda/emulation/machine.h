// Tests only: the emulated runtime's state, for its own sources.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "engine/kernels/cuda/emulation/runtime.h"

namespace lockstep::emulation {

// A stream's work. Events keep it beyond the stream.
struct Queue {
  std::deque<Work> work;
  uint64_t submitted = 0, done = 0;
  int device = 0;
  bool begun = false;    // the first piece has been asked before
  bool running = false;  // the first piece is inside its call
};

// An event that processes share, in a mapping of its own. It has happened when the two are equal.
struct EventPage {
  std::atomic<uint64_t> recorded, done;
};

struct Allocation {
  size_t bytes = 0;     // asked for
  uint64_t number = 0;  // no two have the same
  size_t mapped = 0;    // whole pages
  int device = 0;
  int fd = -1;  // the shared memory in its place, once it was exported
};

struct Machine {
  // Of everything here, of streams and events, and of the one kernel that runs. Recursive: work waits for other work.
  std::recursive_mutex mutex;
  size_t memory_limit = std::numeric_limits<size_t>::max();
  std::map<void*, Allocation> allocations;
  std::map<void*, size_t> opened;      // memory of other processes
  std::map<void*, Allocation> pinned;  // of the host
  uint64_t allocations_made = 0;
  // Copies and graphs that use pinned memory: begin and end.
  std::multimap<const char*, const char*> host_uses;
  std::set<CUstream_st*> streams;
  std::function<void()> hook;
  int until_failure = -1;  // -1: none is to come
  cudaError_t failure = cudaSuccess;
  cudaError_t lost = cudaSuccess;  // what every call says once the device is lost

  size_t InUse(int device) const {
    size_t bytes = 0;
    for (const auto& [pointer, allocation] : allocations) bytes += allocation.device == device ? allocation.bytes : 0;
    return bytes;
  }
};

Machine& TheMachine();
using Guard = std::lock_guard<std::recursive_mutex>;

// Between two questions to work that is under way.
inline constexpr auto kNotReadySleep = std::chrono::microseconds(200);

int CurrentDevice();
cudaError_t Lost();

// Whether a capture forbids the calling thread what is unsafe in one; spoils it.
bool SpoilsCapture();
// The device memory, this process's or opened, that the address is in: its begin and bytes; null: none.
struct DeviceRange {
  const char* begin = nullptr;
  size_t bytes = 0;
  uint64_t number = 0;  // Allocation's; 0: another process's
  int device = 0;
};
DeviceRange FindDevice(const void* address);
bool IsPinned(const void* address);

// Runs the first piece of work, under the lock. False: it is still under way.
bool RunFront(Queue& queue);
// Waits until the queue has done so many; the lock is free between two questions to work that is under way.
void Drain(Queue& queue, uint64_t until);
// All streams of all devices.
void DrainAll();
bool Happened(const CUevent_st& event);
// Runs what the event waits for. False: that is still under way, here or in another process.
bool TryEvent(const CUevent_st& event);

}  // namespace lockstep::emulation

struct CUgraph_st {
  std::vector<lockstep::emulation::Work> work;
  std::map<const void*, uint64_t> memory;  // allocations that the work was captured with, and their numbers
};
struct CUgraphExec_st : CUgraph_st {};
struct CUstream_st {
  std::shared_ptr<lockstep::emulation::Queue> queue = std::make_shared<lockstep::emulation::Queue>();
  // Being captured: into, by whom, how, and whether a call has spoiled it.
  std::unique_ptr<CUgraph_st> graph;
  std::thread::id capturing;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool spoiled = false;
};
struct CUevent_st {
  unsigned flags = 0;
  std::shared_ptr<lockstep::emulation::Queue> queue;  // null: never recorded, or on the null stream: it has happened
  uint64_t after = 0;                                 // it happens when the queue has done so many
  std::chrono::steady_clock::time_point recorded = {};
  lockstep::emulation::EventPage* page = nullptr;  // of an interprocess event
  int fd = -1;                                     // its shared memory; -1: another process's
};

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_
