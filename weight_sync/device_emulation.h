// Tests only: DeviceRuntime and NcclApi without a GPU, among threads and processes of one machine. They move the bytes
// and keep the awkward habits of the real ones, which is what the code above them is tested for:
//
// - Streams run on their own threads: nothing is done when a call returns. Operations of NCCL reach the stream only
//   after Done has been asked twice.
// - Device memory is a memfd; handles name it as /proc/PID/fd/N, so that another process maps the same bytes.
// - A communicator is a star of Unix sockets around rank 0. A peer that dies is not noticed: whoever waits for it waits
//   until Abort, as over NVLink.
// - A rule of the interfaces that is broken ends the test: two threads inside one communicator, a call while another is
//   in progress, one on a communicator that has ended, a copy with memory of the host on a busy stream.
//
// What it cannot show: anything about the device itself, bandwidth, NCCL's algorithms and their order of sums.
#ifndef LOCKSTEP_WEIGHT_SYNC_DEVICE_EMULATION_H_
#define LOCKSTEP_WEIGHT_SYNC_DEVICE_EMULATION_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "weight_sync/comm_device.h"

namespace lockstep {

// Of one member; may be changed at any time.
struct EmulatedFaults {
  std::atomic<bool> never_connects{false};  // InitRank stays in progress and tells nobody
  std::atomic<int> silent_in_operation{0};  // operation number, from 1: stops half way through, as if dead
  std::atomic<int> error_in_operation{0};   // an asynchronous error in the middle of it
  std::atomic<int> delay_ms{0};             // of every operation
  std::atomic<int> call_us{0};              // that every call on a communicator takes, so that calls meet
  std::atomic<bool> abort_hangs{false};     // as long as it is set
  std::atomic<bool> break_idle{false};      // the next communicator that is asked between operations has failed
  std::atomic<int> aborts{0};               // counted, as are communicators
  std::atomic<int> inits{0};
};

std::shared_ptr<DeviceRuntime> MakeEmulatedRuntime(const std::string& bus_id);
// How an operation, which may wait for others, gets onto a stream; null: onto one of MakeEmulatedRuntime.
using EnqueueOperation = std::function<void(void* stream, std::function<void()> operation)>;
std::shared_ptr<NcclApi> MakeEmulatedNccl(std::shared_ptr<EmulatedFaults> faults, EnqueueOperation enqueue = nullptr);
// Both.
std::shared_ptr<CommDevice> MakeEmulatedDevice(
    const std::string& bus_id, std::shared_ptr<EmulatedFaults> faults = std::make_shared<EmulatedFaults>());

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_DEVICE_EMULATION_H_
