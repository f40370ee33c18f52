#include "weight_sync/transport_nccl.h"

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "weight_sync/device_wait.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/nccl_group.h"

namespace lockstep {
namespace {

// Ended with the last transport or slot that has it.
struct KeptNccl : KeptGroup {
  KeptNccl(std::string name, std::shared_ptr<NcclGroup> nccl)
      : KeptGroup(std::move(name), nccl->rank(), nccl->size()), nccl(std::move(nccl)) {}
  ~KeptNccl() override {
    if (nccl != nullptr) nccl->Close();
  }
  bool Usable() override { return nccl->Usable(); }

  std::shared_ptr<NcclGroup> nccl;
};

class NcclTransport : public WeightTransport {
 public:
  NcclTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table, std::shared_ptr<KeptSlot> slot)
      : device_(std::move(device)),
        table_(std::move(table)),
        slot_(std::move(slot)),
        group_(std::make_shared<NcclGroup>(device_)) {}
  ~NcclTransport() override {
    Close();
    // While an abort hangs, the device may still write into the bucket.
    if (bucket_.memory != nullptr && !device_->stuck) device_->staging.Return(bucket_);
  }

  absl::Duration join_timeout() const override { return kNcclJoinTimeout; }

  absl::Status Join(const TransportGroup& group, absl::Time deadline) override {
    std::unique_ptr<KeptGroup> kept = slot_ == nullptr ? nullptr : slot_->Take(group);
    name_ = group.kept.empty() ? group.name : group.kept;
    if (!group.kept.empty()) {
      if (device_->stuck) return DeviceStuck();
      if (kept == nullptr) return absl::AbortedError("the kept NCCL group is not here any more; form a new one");
      MutexLock lock(&mutex_);
      group_ = std::move(static_cast<KeptNccl*>(kept.get())->nccl);
      if (!closed_) return absl::OkStatus();
      group_->Close();
      return GroupClosed();
    }
    NcclGroupOptions options;
    options.rank = group.rank;
    options.size = group.size;
    options.table = table_;
    options.deadline = deadline;
    return group_->Join(options);
  }

  absl::Status Send(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(group_->rank() == 0, "only rank 0 sends");
    if (FailpointFires("transport.skip_send")) return absl::OkStatus();
    const std::string what = absl::StrCat("sending bucket ", bucket);
    if (device_->runtime->IsDeviceMemory(data)) {
      // In place; the root's memory is only read.
      return Broadcast(what, const_cast<void*>(data), bytes, deadline);
    }
    absl::Status status = Reserve(bytes);
    if (status.ok()) status = Copy(what, bucket_.memory, data, bytes, deadline);
    return status.ok() ? Broadcast(what, bucket_.memory, bytes, deadline) : status;
  }

  absl::Status Receive(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(group_->rank() != 0, "rank 0 does not receive");
    const std::string what = absl::StrCat("receiving bucket ", bucket);
    absl::Status status;
    if (device_->runtime->IsDeviceMemory(data)) {
      status = Broadcast(what, data, bytes, deadline);
    } else {
      status = Reserve(bytes);
      if (status.ok()) status = Broadcast(what, bucket_.memory, bytes, deadline);
      // Begun only now: a copy to plain memory waits for what the stream holds, and a broadcast may never end.
      if (status.ok()) status = Copy(what, data, bucket_.memory, bytes, deadline);
    }
    if (!status.ok() || !FailpointFires("transport.corrupt_bucket")) return status;
    return CorruptByte(*device_->runtime, static_cast<char*>(data) + bytes / 2);
  }

  void Close() override {
    std::shared_ptr<NcclGroup> group;
    {
      MutexLock lock(&mutex_);
      closed_ = true;
      group = group_;
    }
    if (group != nullptr) group->Close();
  }

  void Keep() override {
    if (slot_ == nullptr || name_.empty()) return Close();
    std::shared_ptr<NcclGroup> group;
    {
      MutexLock lock(&mutex_);
      if (closed_) return;
      closed_ = true;
      group = std::move(group_);
    }
    slot_->Put(std::make_unique<KeptNccl>(name_, std::move(group)));
  }

 private:
  absl::Status Broadcast(const std::string& what, void* data, uint64_t bytes, absl::Time deadline) {
    return group_->Run(what, deadline, [&](NcclApi& nccl, void* comm, void* stream) {
      return nccl.Broadcast(data, bytes, comm, stream);
    });
  }
  absl::Status Copy(const std::string& what, void* to, const void* from, uint64_t bytes, absl::Time deadline) {
    return group_->Run(what, deadline,
                       [&](NcclApi&, void*, void* stream) { return device_->runtime->Copy(to, from, bytes, stream); });
  }
  absl::Status Reserve(uint64_t bytes) {
    if (bucket_.bytes >= bytes) return absl::OkStatus();
    if (bucket_.memory != nullptr) device_->staging.Return(bucket_);
    bucket_ = {};
    absl::StatusOr<StagingPool::Buffer> bucket = device_->staging.Take(bytes);
    if (bucket.ok()) bucket_ = *bucket;
    return bucket.status();
  }

  const std::shared_ptr<CommDevice> device_;
  const std::shared_ptr<GroupTable> table_;
  const std::shared_ptr<KeptSlot> slot_;  // may be null
  std::string name_;
  Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // Changed by Join and Keep, when no other thread but Close's is here.
  std::shared_ptr<NcclGroup> group_;
  StagingPool::Buffer bucket_;
};

}  // namespace

std::unique_ptr<WeightTransport> MakeNcclTransport(std::shared_ptr<CommDevice> device,
                                                   std::shared_ptr<GroupTable> table, std::shared_ptr<KeptSlot> slot) {
  return std::make_unique<NcclTransport>(std::move(device), std::move(table), std::move(slot));
}

TransportKind NcclKind(std::shared_ptr<CommDevice> device) {
  auto slot = std::make_shared<KeptSlot>();
  return {
      [device, slot](std::shared_ptr<GroupTable> table) { return MakeNcclTransport(device, std::move(table), slot); },
      device, [slot] { return slot->Name(); }};
}

}  // namespace lockstep
