// NCCL of programs over the emulated device of engine/kernels/cuda/emulation: the operations of nccl_emulation.cc, on
// the streams of that device.
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "engine/base/check.h"
#include "engine/kernels/cuda/emulation/environment.h"
#include "engine/kernels/cuda/emulation/runtime.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/nccl_api.h"

namespace lockstep {
namespace {

// An operation waits for other processes, so it has a thread of its own; the stream asks whether it has ended. It
// begins at once: a group enqueues one operation at a time, on a stream of its own.
void Enqueue(void* stream, std::function<void()> operation) {
  const auto ended = std::make_shared<std::atomic<bool>>(false);
  std::thread([ended, operation = std::move(operation)] {
    operation();
    *ended = true;
  }).detach();
  const cudaError_t error = emulation::Submit(static_cast<cudaStream_t>(stream),
                                              [ended] { return *ended ? cudaSuccess : cudaErrorNotReady; });
  LOCKSTEP_CHECK(error == cudaSuccess || cudaGetLastError() != cudaSuccess, "only a lost device takes no operation");
}

}  // namespace

absl::StatusOr<std::shared_ptr<NcclApi>> LoadNccl() {
  if (emulation::Environment().at("nccl") == "0") {
    return absl::UnavailableError("no NCCL: the emulated machine has none");
  }
  return MakeEmulatedNccl(std::make_shared<EmulatedFaults>(), &Enqueue);
}

}  // namespace lockstep
