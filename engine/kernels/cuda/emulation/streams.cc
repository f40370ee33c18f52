// Streams, events and graphs of the emulated runtime.
#include <algorithm>
#include <thread>
#include <utility>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

using namespace lockstep::emulation;

namespace {

// What a stream that is being captured does not take.
bool SpoilsItself(cudaStream_t stream) {
  if (stream == nullptr || stream->graph == nullptr) return false;
  return stream->spoiled = true;
}

}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Guard guard(TheMachine().mutex);
  *stream = new CUstream_st;
  (*stream)->queue->device = CurrentDevice();
  TheMachine().streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Drain(*stream->queue, stream->queue->submitted);
  const Guard guard(TheMachine().mutex);
  TheMachine().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (stream == nullptr) return Lost();
  uint64_t until = 0;
  {
    const Guard guard(TheMachine().mutex);
    if (SpoilsItself(stream)) return cudaErrorStreamCaptureUnsupported;
    until = stream->queue->submitted;
  }
  Drain(*stream->queue, until);
  return Lost();
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Guard guard(TheMachine().mutex);
  if (SpoilsCapture() || SpoilsItself(stream)) return cudaErrorStreamCaptureUnsupported;
  if (stream != nullptr) {
    static_cast<void>(RunFront(*stream->queue));
    if (TheMachine().lost == cudaSuccess && !stream->queue->work.empty()) return cudaErrorNotReady;
  }
  return TheMachine().lost;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Guard guard(TheMachine().mutex);
  if (SpoilsItself(stream)) return cudaErrorStreamCaptureUnsupported;
  // A later record does not move what was waited for.
  return Submit(stream, [at = *event] { return TryEvent(at) ? TheMachine().lost : cudaErrorNotReady; });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Guard guard(TheMachine().mutex);
  if (SpoilsItself(stream)) return cudaErrorStreamCaptureUnsupported;
  if (event->page != nullptr) {
    if (event->fd < 0) return cudaErrorInvalidResourceHandle;  // another process's is only asked
    const uint64_t number = ++event->page->recorded;
    const cudaError_t error = Submit(stream, [page = event->page, number] {
      page->done = number;
      return cudaSuccess;
    });
    if (error != cudaSuccess) return error;
  }
  event->queue = stream == nullptr ? nullptr : stream->queue;
  event->after = stream == nullptr ? 0 : stream->queue->submitted;
  event->recorded = std::chrono::steady_clock::now();
  return TheMachine().lost;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  while (!TryEvent(*event)) std::this_thread::sleep_for(kNotReadySleep);
  return Lost();
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Guard guard(TheMachine().mutex);
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  if (!Happened(*event) && event->queue != nullptr) static_cast<void>(RunFront(*event->queue));
  if (TheMachine().lost != cudaSuccess) return TheMachine().lost;
  return Happened(*event) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  const Guard guard(TheMachine().mutex);
  for (const CUevent_st* event : {begin, end}) {
    const bool recorded = event->recorded.time_since_epoch().count() != 0;
    if (!recorded || (event->flags & cudaEventDisableTiming) != 0) return cudaErrorInvalidResourceHandle;
    if (!Happened(*event)) return cudaErrorNotReady;
  }
  *milliseconds = std::max(1e-3f, std::chrono::duration<float, std::milli>(end->recorded - begin->recorded).count());
  return TheMachine().lost;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Guard guard(TheMachine().mutex);
  if (stream == nullptr || stream->graph != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->graph = std::make_unique<CUgraph_st>();
  stream->capturing = std::this_thread::get_id();
  stream->mode = mode;
  stream->spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Guard guard(TheMachine().mutex);
  *graph = nullptr;
  if (stream == nullptr || stream->graph == nullptr) return cudaErrorInvalidValue;
  if (stream->mode != cudaStreamCaptureModeRelaxed && stream->capturing != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  auto captured = std::exchange(stream->graph, nullptr);
  if (stream->spoiled) return cudaErrorStreamCaptureInvalidated;
  *graph = captured.release();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const Guard guard(TheMachine().mutex);
  if (SpoilsCapture()) return cudaErrorStreamCaptureUnsupported;
  *exec = new CUgraphExec_st{*graph};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const auto& [address, number] : exec->memory) {
    LOCKSTEP_CHECK(FindDevice(address).number == number, "a graph is started whose memory has been freed");
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
  const Guard guard(TheMachine().mutex);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  const Guard guard(TheMachine().mutex);
  delete exec;
  return cudaSuccess;
}
