#include "rollout_server/cuda_shadow.h"

#include "engine/base/check.h"
#include "engine/cuda/device.h"

namespace lockstep {
namespace {

class CudaShadow final : public Shadow {
 public:
  CudaShadow(int device, const BucketPlan& plan, WeightId id, std::shared_ptr<const cuda::DeviceWeights> memory,
             std::shared_ptr<cuda::SetWriter> writer)
      : device_(device), plan_(plan), id_(id), memory_(std::move(memory)), writer_(std::move(writer)) {}
  absl::Status Begin() {
    std::vector<cuda::ImagePiece> pieces;
    for (const Bucket& bucket : plan_.buckets) pieces.push_back({bucket.begin, bucket.bytes});
    return writer_->Begin(memory_.get(), pieces);
  }

  const BucketPlan& plan() const override { return plan_; }
  absl::Status Fill(const ReceiveBucket& receive) override;
  const std::vector<uint64_t>& digests() const override { return digests_; }
  std::shared_ptr<const WeightSet> Release() override {
    return std::make_shared<CudaWeightSet>(id_, std::move(memory_));
  }

 private:
  absl::Status FillBuckets(const ReceiveBucket& receive);

  const int device_;
  const BucketPlan plan_;
  const WeightId id_;
  std::shared_ptr<const cuda::DeviceWeights> memory_;  // null: released
  const std::shared_ptr<cuda::SetWriter> writer_;
  std::vector<uint64_t> digests_;
};

absl::Status CudaShadow::Fill(const ReceiveBucket& receive) {
  LOCKSTEP_CHECK(memory_ != nullptr, "a released shadow is not filled again");
  // A device is a thread's, and this is one of the server's.
  absl::Status status = cuda::CudaStatus(cudaSetDevice(device_), "choosing the device");
  if (!status.ok()) return status;
  status = FillBuckets(receive);
  if (!status.ok()) {
    static_cast<void>(writer_->Abandon());  // memory and writer are given to others; the first error says more
    return status;
  }
  absl::StatusOr<std::vector<uint64_t>> digests = writer_->Finish();
  if (!digests.ok()) return digests.status();
  digests_ = *std::move(digests);
  return absl::OkStatus();
}

absl::Status CudaShadow::FillBuckets(const ReceiveBucket& receive) {
  for (size_t i = 0; i < plan_.buckets.size(); ++i) {
    const absl::StatusOr<void*> memory = writer_->Memory(i);
    if (!memory.ok()) return memory.status();
    absl::Status status = receive(i, *memory, plan_.buckets[i].bytes);
    if (status.ok()) status = writer_->Install(i);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Shadow>> MakeCudaShadow(int device, const BucketPlan& plan, WeightId id,
                                                       std::shared_ptr<const cuda::DeviceWeights> memory,
                                                       std::shared_ptr<cuda::SetWriter> writer) {
  auto shadow = std::make_unique<CudaShadow>(device, plan, id, std::move(memory), std::move(writer));
  if (absl::Status status = shadow->Begin(); !status.ok()) return status;
  return shadow;
}

}  // namespace lockstep
