#include "weight_sync/weight_snapshot.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "engine/base/digest.h"

namespace lockstep {
namespace {

constexpr unsigned kMaxThreads = 8;

}  // namespace

absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeSnapshot(const ModelConfig& config, const ParamLayout& layout,
                                                                   DType dtype, uint64_t bucket_bytes, WeightId id,
                                                                   ParamSource params) {
  absl::StatusOr<BucketPlan> plan = MakeBucketPlan(layout, dtype, bucket_bytes);
  if (!plan.ok()) return plan.status();
  auto snapshot = std::make_shared<WeightSnapshot>();
  snapshot->id = id;
  snapshot->plan = *std::move(plan);
  snapshot->bytes = Buffer(snapshot->plan.total_bytes);
  snapshot->digests.resize(snapshot->plan.buckets.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    const std::vector<Bucket>& buckets = snapshot->plan.buckets;
    for (size_t i = next++; i < buckets.size(); i = next++) {
      char* const wire = snapshot->bytes.As<char>() + buckets[i].begin;
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
