#include "weight_sync/device_snapshot.h"

#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/digest.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_wait.h"

namespace lockstep {
namespace {

constexpr uint64_t kReadBytes = 2 << 20;  // of one copy to the host
constexpr absl::Duration kReadLimit = absl::Seconds(10);

// Until the stream is empty. A device that does not answer counts as stuck: what it may still write is left to it.
absl::Status AwaitStream(CommDevice& device, const std::string& what, void* stream, absl::Time deadline) {
  static const std::atomic<bool> never{false};
  const absl::Status status = WaitForDevice(what, deadline, never, [&] { return device.runtime->StreamDone(stream); });
  if (absl::IsDeadlineExceeded(status)) device.stuck = true;
  return status;
}

class DeviceSnapshot : public WeightSnapshot {
 public:
  DeviceSnapshot(std::shared_ptr<CommDevice> device, StagingPool::Buffer memory)
      : device_(std::move(device)), memory_(memory) {
    image = static_cast<const char*>(memory.memory);
  }
  ~DeviceSnapshot() override {
    if (device_->stuck) {
      (void)piece_.release();
      return;
    }
    if (stream_ != nullptr) device_->runtime->FreeStream(stream_);
    device_->images.Return(memory_);
  }

  absl::Status Read(uint64_t begin, uint64_t bytes, char* to) const override {
    MutexLock lock(&mutex_);
    if (device_->stuck) return DeviceStuck();
    if (stream_ == nullptr) {
      absl::StatusOr<void*> stream = device_->runtime->MakeStream();
      if (!stream.ok()) return stream.status();
      stream_ = *stream;
      piece_ = std::make_unique<char[]>(kReadBytes);
    }
    for (uint64_t at = 0; at < bytes; at += kReadBytes) {
      const uint64_t size = std::min(kReadBytes, bytes - at);
      absl::Status status = device_->runtime->Copy(piece_.get(), image + begin + at, size, stream_);
      if (status.ok()) status = AwaitStream(*device_, "reading weights back", stream_, absl::Now() + kReadLimit);
      if (!status.ok()) return status;
      std::memcpy(to + at, piece_.get(), size);
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<CommDevice> device_;
  const StagingPool::Buffer memory_;
  mutable Mutex mutex_;
  mutable void* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  mutable std::unique_ptr<char[]> piece_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

DeviceDigests::~DeviceDigests() {
  if (device_->stuck) {
    (void)new std::vector<uint64_t>(std::move(list_));  // what is late may still be written
    return;
  }
  if (stream_ != nullptr) device_->runtime->FreeStream(stream_);
  if (on_device_.memory != nullptr) device_->staging.Return(on_device_);
}

absl::Status DeviceDigests::Reserve(const BucketPlan& plan) {
  places_.clear();
  size_t blocks = 0;
  for (const Bucket& bucket : plan.buckets) {
    places_.push_back({bucket.bytes, blocks, DigestBlocks(bucket.bytes)});
    blocks += places_.back().blocks;
  }
  list_.resize(blocks);
  if (stream_ == nullptr) {
    absl::StatusOr<void*> stream = device_->runtime->MakeStream();
    if (!stream.ok()) return stream.status();
    stream_ = *stream;
  }
  if (on_device_.bytes >= blocks * sizeof(uint64_t)) return absl::OkStatus();
  if (on_device_.memory != nullptr) device_->staging.Return(on_device_);
  on_device_ = {};
  absl::StatusOr<StagingPool::Buffer> memory = device_->staging.Take(blocks * sizeof(uint64_t));
  if (memory.ok()) on_device_ = *memory;
  return memory.status();
}

absl::Status DeviceDigests::Enqueue(size_t bucket, const void* data) {
  LOCKSTEP_CHECK(bucket < places_.size(), "a bucket of the plan");
  const Place& place = places_[bucket];
  return device_->runtime->DigestsOfBlocks(data, place.bytes,
                                           static_cast<uint64_t*>(on_device_.memory) + place.first_block, stream_);
}

absl::StatusOr<std::vector<uint64_t>> DeviceDigests::Wait(absl::Time deadline) {
  absl::Status status = AwaitStream(*device_, "digests of weights", stream_, deadline);
  const uint64_t bytes = list_.size() * sizeof(uint64_t);
  if (status.ok() && bytes > 0) status = device_->runtime->Copy(list_.data(), on_device_.memory, bytes, stream_);
  if (status.ok()) status = AwaitStream(*device_, "reading digests back", stream_, deadline);
  if (!status.ok()) return status;
  std::vector<uint64_t> digests;
  for (const Place& place : places_) {
    digests.push_back(Digest(&list_[place.first_block], place.blocks * sizeof(uint64_t)));
  }
  return digests;
}

absl::StatusOr<std::shared_ptr<const WeightSnapshot>> MakeDeviceSnapshot(
    const ModelConfig& config, const ParamLayout& layout, DType dtype, uint64_t bucket_bytes, WeightId id,
    const DeviceParams& params, std::shared_ptr<CommDevice> device, absl::Time deadline) {
  if (device->stuck) return DeviceStuck();
  absl::StatusOr<BucketPlan> plan = MakeBucketPlan(layout, dtype, bucket_bytes);
  if (!plan.ok()) return plan.status();
  const absl::StatusOr<StagingPool::Buffer> memory = device->images.Take(plan->total_bytes);
  if (!memory.ok()) return memory.status();
  auto snapshot = std::make_shared<DeviceSnapshot>(device, *memory);
  snapshot->id = id;
  snapshot->plan = *std::move(plan);
  absl::Status status = params.WriteImage(snapshot->plan, memory->memory);
  if (!status.ok()) return status;
  DeviceDigests digests(device);
  status = digests.Reserve(snapshot->plan);
  for (size_t i = 0; status.ok() && i < snapshot->plan.buckets.size(); ++i) {
    status = digests.Enqueue(i, snapshot->BucketData(i));
  }
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<uint64_t>> list = digests.Wait(deadline);
  if (!list.ok()) return list.status();
  snapshot->digests = *std::move(list);
  snapshot->manifest = MakeManifest(config, layout, snapshot->plan, snapshot->digests);
  return std::shared_ptr<const WeightSnapshot>(std::move(snapshot));
}

}  // namespace lockstep
