// One published version as bytes on the wire: what is broadcast, and what late joiners fetch.
#ifndef LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_
#define LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "proto/weight_sync.pb.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/update_machine.h"

namespace lockstep {

class WeightSnapshot {
 public:
  virtual ~WeightSnapshot() = default;

  // In the memory where the image lies: what a transport is given.
  const char* BucketData(size_t bucket) const { return image + plan.buckets[bucket].begin; }
  // Bytes [begin, begin + bytes) of the image into memory of the host. Thread safe.
  virtual absl::Status Read(uint64_t begin, uint64_t bytes, char* to) const = 0;

  WeightId id;
  BucketPlan plan;
  std::vector<uint64_t> digests;
  v1::UpdateManifest manifest;
  const char* image = nullptr;  // plan.total_bytes: the buckets one after the other
};

// In host memory: rounds the parameters bucket by bucket, on all cores, and digests what it wrote. The one on a device
// is in device_snapshot.h.
absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeSnapshot(const ModelConfig& config, const ParamLayout& layout,
                                                                   DType dtype, uint64_t bucket_bytes, WeightId id,
                                                                   ParamSource params);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_
