// A published version in device memory. No byte of it is brought to the host, but for the digests of its blocks and for
// what late joiners fetch.
#ifndef LOCKSTEP_WEIGHT_SYNC_DEVICE_SNAPSHOT_H_
#define LOCKSTEP_WEIGHT_SYNC_DEVICE_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "weight_sync/comm_device.h"
#include "weight_sync/device_params.h"
#include "weight_sync/weight_snapshot.h"

namespace lockstep {

// Lets the parameters be written into an image on the device, and digests it there. The image is one of device->images:
// taken again from update to update, a second one is made only while something still reads the previous snapshot.
// RESOURCE_EXHAUSTED: there is no memory for it. DEADLINE_EXCEEDED: the device does not answer.
absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeDeviceSnapshot(
    const ModelConfig& config, const ParamLayout& layout, DType dtype, uint64_t bucket_bytes, WeightId id,
    const DeviceParams& params, std::shared_ptr<CommDevice> device, absl::Time deadline);

// What a device digests: the blocks' digests by its kernel, brought to the host in one copy, which makes of them the
// BlockDigest of each bucket. Not thread safe.
class DeviceDigests {
 public:
  explicit DeviceDigests(std::shared_ptr<CommDevice> device) : device_(std::move(device)) {}
  ~DeviceDigests();
  DeviceDigests(const DeviceDigests&) = delete;

  // For buckets of these sizes.
  absl::Status Reserve(const BucketPlan& plan);
  // Enqueues the kernel for a bucket that lies at `data` on the device. Its bytes are there already.
  absl::Status Enqueue(size_t bucket, const void* data);
  // Waits for all that was enqueued; a digest for each bucket of the plan.
  absl::StatusOr<std::vector<uint64_t>> Wait(absl::Time deadline);

 private:
  struct Place {
    uint64_t bytes = 0;
    size_t first_block = 0;
    size_t blocks = 0;
  };

  const std::shared_ptr<CommDevice> device_;
  std::vector<Place> places_;  // a bucket each
  std::vector<uint64_t> list_;
  StagingPool::Buffer on_device_;
  void* stream_ = nullptr;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_DEVICE_SNAPSHOT_H_
