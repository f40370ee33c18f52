#include "weight_sync/image_shadow.h"

#include <utility>

#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "weight_sync/device_snapshot.h"

namespace lockstep {
namespace {

constexpr absl::Duration kDigestLimit = absl::Seconds(30);

class ImageShadow : public Shadow {
 public:
  ImageShadow(std::shared_ptr<ImageWeights> weights, std::shared_ptr<CommDevice> device)
      : plan_(weights->plan), weights_(std::move(weights)), digester_(std::move(device)) {}

  absl::Status Reserve() { return digester_.Reserve(plan_); }
  const BucketPlan& plan() const override { return plan_; }
  const std::vector<uint64_t>& digests() const override { return digests_; }
  std::shared_ptr<const WeightSet> Release() override { return std::move(weights_); }

  absl::Status Fill(const ReceiveBucket& receive) override {
    LOCKSTEP_CHECK(weights_ != nullptr, "a released shadow is not filled again");
    for (uint64_t i = 0; i < plan_.buckets.size(); ++i) {
      char* const memory = static_cast<char*>(weights_->memory.memory) + plan_.buckets[i].begin;
      absl::Status status = receive(i, memory, plan_.buckets[i].bytes);
      if (status.ok()) status = digester_.Enqueue(i, memory);  // beside the next bucket
      if (!status.ok()) return status;
    }
    absl::StatusOr<std::vector<uint64_t>> digests = digester_.Wait(absl::Now() + kDigestLimit);
    if (digests.ok()) digests_ = *std::move(digests);
    return digests.status();
  }

 private:
  const BucketPlan plan_;
  std::shared_ptr<ImageWeights> weights_;
  DeviceDigests digester_;
  std::vector<uint64_t> digests_;
};

}  // namespace

ImageWeights::ImageWeights(ModelConfig config, BucketPlan plan, std::shared_ptr<CommDevice> device,
                           StagingPool::Buffer memory)
    : WeightSet(std::move(config), plan.dtype), plan(std::move(plan)), device(std::move(device)), memory(memory) {}

ImageWeights::~ImageWeights() {
  if (!device->stuck) device->images.Return(memory);
}

absl::StatusOr<std::unique_ptr<Shadow>> MakeImageShadow(std::shared_ptr<CommDevice> device, const ModelConfig& config,
                                                        const BucketPlan& plan, WeightId id) {
  absl::StatusOr<StagingPool::Buffer> memory = device->images.Take(plan.total_bytes);
  if (!memory.ok()) return memory.status();
  auto weights = std::make_shared<ImageWeights>(config, plan, device, *memory);
  weights->epoch = id.epoch;
  weights->version = id.version;
  auto shadow = std::make_unique<ImageShadow>(std::move(weights), std::move(device));
  const absl::Status status = shadow->Reserve();
  if (!status.ok()) return status;
  return std::unique_ptr<Shadow>(std::move(shadow));
}

}  // namespace lockstep
