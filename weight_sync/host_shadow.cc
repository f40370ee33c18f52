#include "weight_sync/host_shadow.h"

#include <future>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/digest.h"

namespace lockstep {
namespace {

class HostShadow : public Shadow {
 public:
  HostShadow(const ModelConfig& config, const BucketPlan& plan, WeightId id)
      : plan_(plan), weights_(std::make_shared<Weights>(config, plan_.dtype)) {
    weights_->epoch = id.epoch;
    weights_->version = id.version;
    for (Buffer& buffer : staging_) buffer = Buffer(plan_.max_bytes);
    digests_.resize(plan_.buckets.size());
  }
  ~HostShadow() override {
    if (installing_.valid()) installing_.wait();
  }

  const BucketPlan& plan() const override { return plan_; }
  absl::Status Fill(const ReceiveBucket& receive) override;
  const std::vector<uint64_t>& digests() const override { return digests_; }
  std::shared_ptr<const WeightSet> Release() override { return std::move(weights_); }

 private:
  void Install(uint64_t bucket, void* memory);

  const BucketPlan plan_;
  std::shared_ptr<Weights> weights_;
  Buffer staging_[2];
  std::future<void> installing_;
  std::vector<uint64_t> digests_;
};

absl::Status HostShadow::Fill(const ReceiveBucket& receive) {
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

void HostShadow::Install(uint64_t bucket, void* memory) {
  const Bucket& cut = plan_.buckets[bucket];
  StoreBucket(plan_, cut, memory, weights_.get());
  // Read back: what is digested is the set itself, with the packing that it went through.
  LoadBucket(plan_, cut, *weights_, memory);
  digests_[bucket] = BlockDigest(memory, cut.bytes);
}

}  // namespace

std::unique_ptr<Shadow> MakeHostShadow(const ModelConfig& config, const BucketPlan& plan, WeightId id) {
  return std::make_unique<HostShadow>(config, plan, id);
}

}  // namespace lockstep
