#include "weight_sync/transport_nccl.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/nccl_group.h"

namespace lockstep {
namespace {

class NcclTransport : public WeightTransport {
 public:
  NcclTransport(std::shared_ptr<CommDevice> device, std::shared_ptr<GroupTable> table)
      : device_(std::move(device)), table_(std::move(table)), group_(device_) {}
  ~NcclTransport() override {
    group_.Close();
    // While an abort hangs, the device may still write into the bucket.
    if (bucket_.memory != nullptr && !device_->stuck) device_->staging.Return(bucket_);
  }

  absl::Duration join_timeout() const override { return kNcclJoinTimeout; }

  absl::Status Join(const TransportGroup& group, absl::Time deadline) override {
    NcclGroupOptions options;
    options.rank = group.rank;
    options.size = group.size;
    options.table = table_;
    options.deadline = deadline;
    return group_.Join(options);
  }

  absl::Status Send(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(group_.rank() == 0, "only rank 0 sends");
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
    LOCKSTEP_CHECK(group_.rank() != 0, "rank 0 does not receive");
    const std::string what = absl::StrCat("receiving bucket ", bucket);
    if (device_->runtime->IsDeviceMemory(data)) return Broadcast(what, data, bytes, deadline);
    absl::Status status = Reserve(bytes);
    if (status.ok()) status = Broadcast(what, bucket_.memory, bytes, deadline);
    // Begun only now: a copy to plain memory waits for what the stream holds, and a broadcast may never end.
    if (status.ok()) status = Copy(what, data, bucket_.memory, bytes, deadline);
    if (status.ok() && FailpointFires("transport.corrupt_bucket")) static_cast<char*>(data)[bytes / 2] ^= 0x10;
    return status;
  }

  void Close() override { group_.Close(); }

 private:
  absl::Status Broadcast(const std::string& what, void* data, uint64_t bytes, absl::Time deadline) {
    return group_.Run(what, deadline, [&](NcclApi& nccl, void* comm, void* stream) {
      return nccl.Broadcast(data, bytes, comm, stream);
    });
  }
  absl::Status Copy(const std::string& what, void* to, const void* from, uint64_t bytes, absl::Time deadline) {
    return group_.Run(what, deadline,
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
  NcclGroup group_;
  StagingPool::Buffer bucket_;
};

}  // namespace

std::unique_ptr<WeightTransport> MakeNcclTransport(std::shared_ptr<CommDevice> device,
                                                   std::shared_ptr<GroupTable> table) {
  return std::make_unique<NcclTransport>(std::move(device), std::move(table));
}

TransportKind NcclKind(std::shared_ptr<CommDevice> device) {
  return {[device](std::shared_ptr<GroupTable> table) { return MakeNcclTransport(device, std::move(table)); }, device};
}

}  // namespace lockstep
