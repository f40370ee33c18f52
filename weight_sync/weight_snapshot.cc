#include "weight_sync/weight_snapshot.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "engine/base/digest.h"

namespace lockstep {
namespace {

constexpr unsigned kMaxThreads = 8;

class HostSnapshot : public WeightSnapshot {
 public:
  explicit HostSnapshot(BucketPlan cut) : bytes_(cut.total_bytes) {
    plan = std::move(cut);
    image = bytes_.As<char>();
  }
  absl::Status Read(uint64_t begin, uint64_t bytes, char* to) const override {
    std::memcpy(to, image + begin, bytes);
    return absl::OkStatus();
  }
  char* Place(const Bucket& bucket) { return bytes_.As<char>() + bucket.begin; }

 private:
  Buffer bytes_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeSnapshot(const ModelConfig& config, const ParamLayout& layout,
                                                                   DType dtype, uint64_t bucket_bytes, WeightId id,
                                                                   ParamSource params) {
  absl::StatusOr<BucketPlan> plan = MakeBucketPlan(layout, dtype, bucket_bytes);
  if (!plan.ok()) return plan.status();
  auto snapshot = std::make_shared<HostSnapshot>(*std::move(plan));
  snapshot->id = id;
  snapshot->digests.resize(snapshot->plan.buckets.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    const std::vector<Bucket>& buckets = snapshot->plan.buckets;
    for (size_t i = next++; i < buckets.size(); i = next++) {
      char* const wire = snapshot->Place(buckets[i]);
      if (params.weights != nullptr) {
        LoadBucket(snapshot->plan, buckets[i], *params.weights, wire);
      } else {
        RoundBucket(snapshot->plan, buckets[i], params.arena, wire);
      }
      snapshot->digests[i] = BlockDigest(wire, buckets[i].bytes);
    }
  };
  const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1u, kMaxThreads);
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads && i < snapshot->plan.buckets.size(); ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
  snapshot->manifest = MakeManifest(config, layout, snapshot->plan, snapshot->digests);
  return std::shared_ptr<const WeightSnapshot>(std::move(snapshot));
}

}  // namespace lockstep
