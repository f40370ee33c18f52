// What the groups of one process share on one device: the runtime, NCCL, and staging buffers.
#ifndef LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_
#define LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_runtime.h"
#include "weight_sync/nccl_api.h"

namespace lockstep {

// The driver's unit: smaller allocations share one, and a handle of one (CUDA IPC) opens what lies beside it too.
inline constexpr uint64_t kSmallestStaging = uint64_t{2} << 20;

// Memory and event of a device that are used again by later groups: freeing device memory stops the whole device, and
// what another process has opened must not be freed under it. Kept until the pool ends.
class StagingPool {
 public:
  struct Buffer {
    void* memory = nullptr;
    void* event = nullptr;
    uint64_t bytes = 0;
  };
  explicit StagingPool(std::shared_ptr<DeviceRuntime> runtime) : runtime_(std::move(runtime)) {}
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;

  // At least `bytes`; rounded up to a power of two, so that sets of buckets of many sizes need few buffers.
  absl::StatusOr<Buffer> Take(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Return(const Buffer& buffer) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_free() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const std::shared_ptr<DeviceRuntime> runtime_;
  mutable Mutex mutex_;
  std::vector<Buffer> free_ ABSL_GUARDED_BY(mutex_);
};

struct CommDevice {
  CommDevice(std::shared_ptr<DeviceRuntime> runtime, std::shared_ptr<NcclApi> nccl)
      : runtime(runtime), nccl(std::move(nccl)), staging(std::move(runtime)) {}

  const std::shared_ptr<DeviceRuntime> runtime;
  const std::shared_ptr<NcclApi> nccl;  // may be null: IPC needs none
  StagingPool staging;
  // An abort (nccl_group.h) or a copy did not come back: nothing can be said of the device any more.
  std::atomic<bool> stuck{false};
};

// What a new group is told on a stuck device.
absl::Status DeviceStuck();

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_
