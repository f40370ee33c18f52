// The set that an update fills while the current one is served. One bucket is put in place while the next one arrives.
#ifndef LOCKSTEP_WEIGHT_SYNC_SHADOW_H_
#define LOCKSTEP_WEIGHT_SYNC_SHADOW_H_

#include <functional>
#include <future>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/model.h"
#include "weight_sync/bucket_plan.h"

namespace lockstep {

// Not thread safe: one thread receives.
class Shadow {
 public:
  Shadow(const ModelConfig& config, BucketPlan plan, uint64_t epoch, uint64_t version);
  ~Shadow();

  const BucketPlan& plan() const { return plan_; }
  // Calls receive(bucket, memory, bytes) for every bucket in order, puts each in place and digests it. The memory is a
  // staging buffer, never weights.
  absl::Status Fill(const std::function<absl::Status(uint64_t bucket, void* memory, uint64_t bytes)>& receive);
  // Of the rows as they lie in the set, read back from it; one a bucket.
  const std::vector<uint64_t>& digests() const { return digests_; }
  // After Fill. The set leaves the shadow.
  std::shared_ptr<const Weights> Release() { return std::move(weights_); }

 private:
  void Install(uint64_t bucket, void* memory);

  const BucketPlan plan_;
  std::shared_ptr<Weights> weights_;
  Buffer staging_[2];
  std::future<void> installing_;
  std::vector<uint64_t> digests_;
};

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_SHADOW_H_
