// What the groups of one process share on one device: the runtime, NCCL, and staging buffers.
#ifndef LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_
#define LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_runtime.h"
#include "weight_sync/nccl_api.h"
#include "weight_sync/opened_handles.h"

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
  enum class Sizes : uint8_t {
    kPowersOfTwo,  // rounded up, so that sets of buckets of many sizes need few buffers
    kExact,
  };
  explicit StagingPool(std::shared_ptr<DeviceRuntime> runtime, Sizes sizes = Sizes::kPowersOfTwo)
      : runtime_(std::move(runtime)), sizes_(sizes) {}
  ~StagingPool();
  StagingPool(const StagingPool&) = delete;

  // At least `bytes`.
  absl::StatusOr<Buffer> Take(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Return(const Buffer& buffer) ABSL_LOCKS_EXCLUDED(mutex_);
  // The buffer, free or taken, in which these bytes lie; null: none.
  std::optional<Buffer> Find(const void* data, uint64_t bytes) const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_made() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t num_free() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const std::shared_ptr<DeviceRuntime> runtime_;
  const Sizes sizes_;
  mutable Mutex mutex_;
  std::vector<Buffer> all_ ABSL_GUARDED_BY(mutex_);
  std::vector<Buffer> free_ ABSL_GUARDED_BY(mutex_);
};

// 16 hexadecimal digits that no other process has.
std::string NewIncarnation();

struct CommDevice {
  CommDevice(std::shared_ptr<DeviceRuntime> runtime, std::shared_ptr<NcclApi> nccl)
      : runtime(runtime), nccl(std::move(nccl)), staging(runtime), images(runtime, StagingPool::Sizes::kExact) {}

  const std::shared_ptr<DeviceRuntime> runtime;
  const std::shared_ptr<NcclApi> nccl;  // may be null: IPC needs none
  StagingPool staging;
  StagingPool images;  // of whole sets of weights (device_snapshot.h); transport_ipc.h offers them as they are
  // An abort (nccl_group.h) or a copy did not come back: nothing can be said of the device any more.
  std::atomic<bool> stuck{false};
  // This process's name for itself, drawn at random, and what it has opened of others.
  const std::string incarnation = NewIncarnation();
  OpenedHandles opened{runtime.get(), &stuck};
};

// Flips one bit, on the device or on the host: for the failpoint of the transports.
absl::Status CorruptByte(DeviceRuntime& runtime, char* at);
// What a new group is told on a stuck device.
absl::Status DeviceStuck();

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_COMM_DEVICE_H_
