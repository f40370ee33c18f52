// The set that an update fills while the current one is served, in host memory (host_shadow.h) or on a device.
#ifndef LOCKSTEP_WEIGHT_SYNC_SHADOW_H_
#define LOCKSTEP_WEIGHT_SYNC_SHADOW_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/weight_set.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/update_machine.h"

namespace lockstep {

// Brings a bucket's bytes to memory.
using ReceiveBucket = std::function<absl::Status(uint64_t bucket, void* memory, uint64_t bytes)>;

// Not thread safe: one thread receives. Ended at any time; what it has not released is given back.
class Shadow {
 public:
  virtual ~Shadow() = default;

  virtual const BucketPlan& plan() const = 0;
  // Calls receive(bucket, memory, bytes) for every bucket in order, puts each in place and digests it. The memory is
  // where the bytes are to lie when receive returns, and nothing on host or device uses it during the call: a staging
  // buffer, or with a device's shadow also the set's own memory. An error of `receive` is returned as it is.
  virtual absl::Status Fill(const ReceiveBucket& receive) = 0;
  // BlockDigest of the rows as they lie in the set, read back from it; one a bucket. After a Fill that succeeded.
  virtual const std::vector<uint64_t>& digests() const = 0;
  // After Fill, once. The set leaves the shadow.
  virtual std::shared_ptr<const WeightSet> Release() = 0;
};

// A shadow of the plan for this version; RESOURCE_EXHAUSTED in one line where it does not fit.
using MakeShadow = std::function<absl::StatusOr<std::unique_ptr<Shadow>>(const BucketPlan& plan, WeightId id)>;

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_SHADOW_H_
