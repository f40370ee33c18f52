#include <thread>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/machine.h"

namespace lockstep::emulation {
namespace {

cudaError_t RunWork(const Work& work, bool first_time) {
  Machine& m = TheMachine();
  if (first_time && m.hook) m.hook();
  if (m.lost != cudaSuccess) return m.lost;
  if (first_time && m.until_failure >= 0 && m.until_failure-- == 0) return m.lost = m.failure;
  const cudaError_t error = work();
  if (error != cudaSuccess && error != cudaErrorNotReady) m.lost = error;
  return error;
}

}  // namespace

bool RunFront(Queue& queue) {
  if (queue.work.empty()) return true;  // another thread was faster
  LOCKSTEP_CHECK(!queue.running, "a stream waits for itself");
  queue.running = true;
  const cudaError_t error = RunWork(queue.work.front(), !std::exchange(queue.begun, true));
  queue.running = false;
  if (error == cudaErrorNotReady) return false;
  queue.begun = false;
  queue.work.pop_front();
  ++queue.done;
  return true;
}

namespace {

// Runs the queue's work up to number `until`. False: some of it is still under way.
bool TryDrain(Queue& queue, uint64_t until) {
  const Guard guard(TheMachine().mutex);
  while (queue.done < until) {
    LOCKSTEP_CHECK(!queue.work.empty(), "a stream waits for itself");
    if (!RunFront(queue)) return false;
  }
  return true;
}

}  // namespace

void Drain(Queue& queue, uint64_t until) {
  while (!TryDrain(queue, until)) std::this_thread::sleep_for(kNotReadySleep);
}

void DrainAll() {
  std::vector<std::pair<std::shared_ptr<Queue>, uint64_t>> queues;
  {
    const Guard guard(TheMachine().mutex);
    for (const CUstream_st* stream : TheMachine().streams) queues.emplace_back(stream->queue, stream->queue->submitted);
  }
  for (const auto& [queue, until] : queues) Drain(*queue, until);
}

bool Happened(const CUevent_st& event) {
  if (event.page != nullptr) return event.page->done == event.page->recorded;
  return event.queue == nullptr || event.queue->done >= event.after;
}

bool TryEvent(const CUevent_st& event) {
  if (event.queue != nullptr && !TryDrain(*event.queue, event.after)) return false;
  const Guard guard(TheMachine().mutex);
  return TheMachine().lost != cudaSuccess || Happened(event);
}

cudaError_t Lost() {
  const Guard guard(TheMachine().mutex);
  return TheMachine().lost;
}

Machine& TheMachine() {
  static auto* const machine = new Machine;
  return *machine;
}

bool SpoilsCapture() {
  const Guard guard(TheMachine().mutex);
  bool spoils = false;
  for (CUstream_st* stream : TheMachine().streams) {
    if (stream->graph == nullptr || stream->mode == cudaStreamCaptureModeRelaxed) continue;
    if (stream->capturing != std::this_thread::get_id() && stream->mode != cudaStreamCaptureModeGlobal) continue;
    stream->spoiled = spoils = true;
  }
  return spoils;
}

cudaError_t Submit(cudaStream_t stream, Work work) {
  Machine& m = TheMachine();
  const Guard guard(m.mutex);
  if (m.lost != cudaSuccess) return m.lost;
  if (stream == nullptr) {
    return SpoilsCapture() ? cudaErrorStreamCaptureImplicit : RunWork(work, /*first_time=*/true);
  }
  if (stream->graph != nullptr) {
    if (stream->spoiled) return cudaErrorStreamCaptureInvalidated;
    stream->graph->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->queue->work.push_back(std::move(work));
  ++stream->queue->submitted;
  return cudaSuccess;
}

cudaError_t CheckStream(cudaStream_t stream) {
  return stream == nullptr || stream->queue->device == CurrentDevice() ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

void FailWork(int skip, cudaError_t error) {
  Machine& m = TheMachine();
  const Guard guard(m.mutex);
  m.lost = cudaSuccess;
  m.failure = error;
  m.until_failure = error == cudaSuccess ? -1 : skip;
}

void SetWorkHook(std::function<void()> hook) {
  const Guard guard(TheMachine().mutex);
  TheMachine().hook = std::move(hook);
}

size_t PendingWork() {
  const Guard guard(TheMachine().mutex);
  size_t pending = 0;
  for (const CUstream_st* stream : TheMachine().streams) pending += stream->queue->work.size();
  return pending;
}

}  // namespace lockstep::emulation
