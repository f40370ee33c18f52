#include "weight_sync/shadow.h"

#include <utility>

#include "engine/base/check.h"
#include "engine/base/digest.h"

namespace lockstep {

Shadow::Shadow(const ModelConfig& config, BucketPlan plan, uint64_t epoch, uint64_t version)
    : plan_(std::move(plan)), weights_(std::make_shared<Weights>(config, plan_.dtype)) {
  weights_->epoch = epoch;
  weights_->version = version;
  for (Buffer& buffer : staging_) buffer = Buffer(plan_.max_bytes);
  digests_.resize(plan_.buckets.size());
}

Shadow::~Shadow() {
  if (installing_.valid()) installing_.wait();
}

absl::Status Shadow::Fill(const std::function<absl::Status(uint64_t bucket, void* memory, uint64_t bytes)>& receive) {
  LOCKSTEP_CHECK(weights_ != nullptr, "a released shadow is not filled again");
  absl::Status status;
  for (uint64_t i = 0; i < plan_.buckets.size() && status.ok(); ++i) {
    void* const memory = staging_[i % 2].data();
    status = receive(i, memory, plan_.buckets[i].bytes);
    if (installing_.valid()) installing_.get();  // of the bucket before: its staging buffer is next
    if (status.ok()) installing_ = std::async(std::launch::async, [this, i, memory] { Install(i, memory); });
  }
  if (installing_.valid()) installing_.get();
  return status;
}

void Shadow::Install(uint64_t bucket, void* memory) {
  const Bucket& cut = plan_.buckets[bucket];
  StoreBucket(plan_, cut, memory, weights_.get());
  // Read back: what is digested is the set itself, with the packing that it went through.
  LoadBucket(plan_, cut, *weights_, memory);
  digests_[bucket] = Digest(memory, cut.bytes);
}

}  // namespace lockstep
