// Private to the emulated runtime: the one machine that it is.
#ifndef LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_
#define LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_

#include <chrono>
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

struct CUgraph_st {
  std::vector<lockstep::emulation::Work> work;
  std::map<const void*, uint64_t> memory;  // allocations that the work was captured with, and their numbers
};
struct CUgraphExec_st : CUgraph_st {};
struct CUstream_st {
  int device = 0;
  std::deque<lockstep::emulation::Work> queue;
  uint64_t submitted = 0, done = 0;
  // Being captured: into, by whom, how, and whether a call has spoiled it.
  std::unique_ptr<CUgraph_st> graph;
  std::thread::id capturing;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool spoiled = false;
};
struct CUevent_st {
  unsigned flags = 0;
  CUstream_st* stream = nullptr;  // null: never recorded, or on the null stream: it has happened
  uint64_t after = 0;             // it happens when the stream has done so many
  std::chrono::steady_clock::time_point recorded = {};
};

namespace lockstep::emulation {

struct Allocation {
  size_t bytes = 0;
  uint64_t number = 0;  // no two have the same
};

struct Machine {
  std::recursive_mutex mutex;  // of everything; a call holds it to its end
  size_t memory_limit = std::numeric_limits<size_t>::max();
  size_t memory_in_use = 0;
  uint64_t allocations_made = 0;
  std::map<const char*, Allocation> device_memory;
  std::map<const char*, size_t> pinned_memory;
  // Copies and graphs that use host memory: begin and end.
  std::multimap<const char*, const char*> host_uses;
  std::set<CUstream_st*> streams;
  int until_failure = -1;  // -1: none is to come
  cudaError_t failure = cudaSuccess;
  cudaError_t lost = cudaSuccess;  // what every call says once the device is lost
};
Machine& TheMachine();
inline std::unique_lock<std::recursive_mutex> Lock() { return std::unique_lock(TheMachine().mutex); }

// The thread's current device; all have the same memory.
int& CurrentDevice();

// Runs a stream's work up to number `until`; everything.
void Drain(CUstream_st* stream, uint64_t until);
void DrainAll();

// Whether a capture forbids the calling thread what is unsafe in one; spoils it.
bool SpoilsCapture();

}  // namespace lockstep::emulation

#endif  // LOCKSTEP_ENGINE_KERNELS_CUDA_EMULATION_MACHINE_H_
