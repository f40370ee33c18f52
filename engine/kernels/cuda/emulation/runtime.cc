// Streams, events and graphs of the emulated runtime.
#include "engine/kernels/cuda/emulation/runtime.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

namespace lockstep::emulation {

Machine& TheMachine() {
  static auto* const machine = new Machine;
  return *machine;
}

int& CurrentDevice() {
  static thread_local int device = 0;
  return device;
}

namespace {

cudaError_t RunWork(const Work& work) {
  Machine& m = TheMachine();
  if (m.lost != cudaSuccess) return m.lost;
  if (m.until_failure >= 0 && m.until_failure-- == 0) return m.lost = m.failure;
  const cudaError_t error = work();
  if (error != cudaSuccess) m.lost = error;
  return error;
}

cudaError_t DrainEvent(const CUevent_st& event) {
  if (event.stream != nullptr) Drain(event.stream, event.after);
  return TheMachine().lost;
}

// The calling thread's, of this device.
bool OnOwnDevice(const CUstream_st* stream) { return stream == nullptr || stream->device == CurrentDevice(); }

}  // namespace

void Drain(CUstream_st* stream, uint64_t until) {
  while (stream->done < until) {
    LOCKSTEP_CHECK(!stream->queue.empty(), "a stream waits for itself");
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    static_cast<void>(RunWork(work));
    ++stream->done;
  }
}

void DrainAll() {
  for (CUstream_st* stream : TheMachine().streams) Drain(stream, stream->submitted);
}

bool SpoilsCapture() {
  bool spoils = false;
  for (CUstream_st* stream : TheMachine().streams) {
    if (stream->graph == nullptr || stream->mode == cudaStreamCaptureModeRelaxed) continue;
    if (stream->capturing != std::this_thread::get_id() && stream->mode != cudaStreamCaptureModeGlobal) continue;
    stream->spoiled = spoils = true;
  }
  return spoils;
}

cudaError_t Submit(cudaStream_t stream, Work work) {
  const auto lock = Lock();
  Machine& m = TheMachine();
  if (m.lost != cudaSuccess) return m.lost;
  if (stream == nullptr) return SpoilsCapture() ? cudaErrorStreamCaptureImplicit : RunWork(work);
  if (!OnOwnDevice(stream)) return cudaErrorInvalidResourceHandle;
  if (stream->graph != nullptr) {
    if (stream->spoiled) return cudaErrorStreamCaptureInvalidated;
    stream->graph->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->queue.push_back(std::move(work));
  ++stream->submitted;
  return cudaSuccess;
}

void FailWork(int skip, cudaError_t error) {
  const auto lock = Lock();
  Machine& m = TheMachine();
  m.lost = cudaSuccess;
  m.failure = error;
  m.until_failure = error == cudaSuccess ? -1 : skip;
}

size_t PendingWork() {
  const auto lock = Lock();
  size_t pending = 0;
  for (const CUstream_st* stream : TheMachine().streams) pending += stream->queue.size();
  return pending;
}

}  // namespace lockstep::emulation

using lockstep::emulation::CurrentDevice;
using lockstep::emulation::Drain;
using lockstep::emulation::DrainAll;
using lockstep::emulation::DrainEvent;
using lockstep::emulation::Lock;
using lockstep::emulation::OnOwnDevice;
using lockstep::emulation::SpoilsCapture;
using lockstep::emulation::Submit;
using lockstep::emulation::TheMachine;

cudaError_t cudaDeviceSynchronize() {
  const auto lock = Lock();
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  DrainAll();
  return TheMachine().lost;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const auto lock = Lock();
  *stream = new CUstream_st;
  (*stream)->device = CurrentDevice();
  TheMachine().streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const auto lock = Lock();
  Drain(stream, stream->submitted);
  TheMachine().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto lock = Lock();
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (stream == nullptr) return TheMachine().lost;
  if (stream->graph != nullptr) {
    stream->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  Drain(stream, stream->submitted);
  return TheMachine().lost;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto lock = Lock();
  if (stream != nullptr && stream->graph != nullptr) {  // of work that the graph does not have
    stream->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  const CUevent_st at = *event;  // a later record does not move what was waited for
  return Submit(stream, [at] { return DrainEvent(at); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const auto lock = Lock();
  *event = new CUevent_st;
  (*event)->flags = flags;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const auto lock = Lock();
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const auto lock = Lock();
  if (!OnOwnDevice(stream)) return cudaErrorInvalidResourceHandle;
  if (stream != nullptr && stream->graph != nullptr) {
    stream->spoiled = true;
    return cudaErrorStreamCaptureUnsupported;
  }
  event->stream = stream;
  event->after = stream == nullptr ? 0 : stream->submitted;
  event->recorded = std::chrono::steady_clock::now();
  return TheMachine().lost;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const auto lock = Lock();
  return SpoilsCapture() ? cudaErrorStreamCaptureUnsupported : DrainEvent(*event);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const auto lock = Lock();
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (event->stream == nullptr || event->stream->done >= event->after) return TheMachine().lost;
  Drain(event->stream, event->stream->done + 1);
  if (TheMachine().lost != cudaSuccess) return TheMachine().lost;
  return event->stream->done >= event->after ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const auto lock = Lock();
  for (const CUevent_st* event : {begin, end}) {
    const bool recorded = event->recorded.time_since_epoch().count() != 0;
    if (!recorded || (event->flags & cudaEventDisableTiming) != 0) return cudaErrorInvalidResourceHandle;
    if (event->stream != nullptr && event->stream->done < event->after) return cudaErrorNotReady;
  }
  *milliseconds = std::max(1e-3f, std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count());
  return TheMachine().lost;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const auto lock = Lock();
  if (stream == nullptr || stream->graph != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->graph = std::make_unique<CUgraph_st>();
  stream->capturing = std::this_thread::get_id();
  stream->mode = mode;
  stream->spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto lock = Lock();
  *graph = nullptr;
  if (stream == nullptr || stream->graph == nullptr) return cudaErrorInvalidValue;
  if (stream->mode != cudaStreamCaptureModeRelaxed && stream->capturing != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  const auto captured = std::exchange(stream->graph, nullptr);
  if (stream->spoiled) return cudaErrorStreamCaptureInvalidated;
  *graph = new CUgraph_st(*captured);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const auto lock = Lock();
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  *exec = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const auto lock = Lock();
  for (const auto& [address, number] : exec->memory) {
    const auto& live = TheMachine().device_memory;
    const auto found = live.find(static_cast<const char*>(address));
    LOCKSTEP_CHECK(found != live.end() && found->second.number == number,
                   "a graph is started whose memory has been freed");
  }
  // The graph's work is copied: on a device too it may run after its executable is destroyed.
  return Submit(stream, [work = exec->work] {
    for (const auto& one : work) {
      if (const cudaError_t error = one(); error != cudaSuccess) return error;
    }
    return cudaSuccess;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const auto lock = Lock();
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const auto lock = Lock();
  delete exec;
  return cudaSuccess;
}
