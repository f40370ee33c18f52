// One published version as bytes on the wire: what is broadcast, and what late joiners fetch.
#ifndef LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_
#define LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "proto/weight_sync.pb.h"
#include "weight_sync/bucket_plan.h"
#include "weight_sync/update_machine.h"

namespace lockstep {

struct WeightSnapshot {
  WeightId id;
  BucketPlan plan;
  Buffer bytes;  // plan.total_bytes: the buckets one after the other
  std::vector<uint64_t> digests;
  v1::UpdateManifest manifest;

  const char* BucketData(size_t bucket) const { return bytes.As<char>() + plan.buckets[bucket].begin; }
};

// Rounds the parameters bucket by bucket, on all cores, and digests what it wrote.
absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeSnapshot(const ModelConfig& config, const ParamLayout& layout,
                                                                   DType dtype, uint64_t bucket_bytes, WeightId id,
                                                                   ParamSource params);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_WEIGHT_SNAPSHOT_H_
