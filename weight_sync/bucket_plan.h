// How a set of weights is cut into buckets: the parameters' rows in ParamLayout order, row-major, in the wire dtype,
// one after the other without gaps; cut before the row that would make a bucket larger than bucket_bytes. Both ends
// compute the same plan from (layout, dtype, bucket_bytes); the manifest only confirms it.
#ifndef LOCKSTEP_WEIGHT_SYNC_BUCKET_PLAN_H_
#define LOCKSTEP_WEIGHT_SYNC_BUCKET_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/model.h"
#include "proto/run_config.pb.h"
#include "proto/weight_sync.pb.h"

namespace lockstep {

inline constexpr uint64_t kMinBucketBytes = 1 << 10;
inline constexpr uint64_t kMaxBucketBytes = uint64_t{1} << 30;
// A plan with more buckets is refused: its manifest would not fit a message.
inline constexpr uint64_t kMaxBuckets = 1 << 20;

// Whole rows of one parameter, contiguous in the bucket and in the FP32 arena.
struct BucketPiece {
  int param = 0;
  int64_t row_begin = 0;
  int64_t rows = 0;
  uint64_t bucket_offset = 0;  // bytes
  int64_t arena_offset = 0;    // elements
  int64_t elements = 0;
};

struct Bucket {
  uint64_t begin = 0;  // bytes from the start of the wire image
  uint64_t bytes = 0;  // at most bucket_bytes, or one row that is longer
  std::vector<BucketPiece> pieces;
};

struct BucketPlan {
  DType dtype = DType::kF16;
  uint64_t bucket_bytes = 0;
  uint64_t total_bytes = 0;
  uint64_t max_bytes = 0;  // of the largest bucket
  std::vector<Bucket> buckets;
};

// bucket_mib; where that is 0, what suits the transport: 32 MiB by TCP, 64 MiB between GPUs ("auto" counts as them),
// where a bucket takes less time than to say that it is there.
uint64_t BucketBytes(const v1::WeightSyncConfig& sync, const std::string& transport);

absl::StatusOr<BucketPlan> MakeBucketPlan(const ParamLayout& layout, DType dtype, uint64_t bucket_bytes);

// The bucket's rows of the FP32 arena, rounded to the plan's dtype, into `wire` (bucket.bytes).
void RoundBucket(const BucketPlan& plan, const Bucket& bucket, const float* arena, void* wire);
// The bucket's rows into the weights / out of them.
void StoreBucket(const BucketPlan& plan, const Bucket& bucket, void* wire, Weights* weights);
void LoadBucket(const BucketPlan& plan, const Bucket& bucket, const Weights& weights, void* wire);

// The manifest of an update; digests has one entry a bucket.
v1::UpdateManifest MakeManifest(const ModelConfig& config, const ParamLayout& layout, const BucketPlan& plan,
                                const std::vector<uint64_t>& digests);
// Digest of the bucket digests, in order.
uint64_t CombineDigests(const std::vector<uint64_t>& digests);
// A receiver's own view against a manifest from the wire: model hash, every tensor, the cut, the sizes, the combined
// digest. The plan, or FAILED_PRECONDITION with one line that names the first difference and both values.
absl::StatusOr<BucketPlan> CheckManifest(const ModelConfig& config, const ParamLayout& layout, DType dtype,
                                         const v1::UpdateManifest& manifest);

}  // namespace lockstep

#endif  // LOCKSTEP_WEIGHT_SYNC_BUCKET_PLAN_H_
