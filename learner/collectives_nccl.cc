#include "learner/collectives_nccl.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/channel.h"
#include "weight_sync/nccl_group.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

constexpr absl::Duration kFinishTimeout = absl::Seconds(5);

uint64_t SizeOf(NcclType type) {
  return type == NcclType::kFloat ? sizeof(float) : type == NcclType::kDouble ? sizeof(double) : 1;
}

class NcclRank : public Collectives {
 public:
  explicit NcclRank(std::shared_ptr<CommDevice> device) : device_(std::move(device)), group_(device_) {}
  ~NcclRank() override {
    group_.Finish(kFinishTimeout);
    if (staging_.memory != nullptr && !device_->stuck) device_->staging.Return(staging_);
  }

  absl::Status Join(const NcclGroupOptions& options) {
    const absl::Status joined = group_.Join(options);
    if (!joined.ok()) return joined;
    const absl::StatusOr<StagingPool::Buffer> staging = device_->staging.Take(kStagedPiece);
    if (staging.ok()) staging_ = *staging;
    return staging.status();
  }

  int rank() const override { return group_.rank(); }
  int world_size() const override { return group_.size(); }
  bool takes_device_memory() const override { return true; }

  absl::Status AllReduceSum(float* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of gradients", data, n, NcclType::kFloat, NcclReduce::kSum, timeout);
  }
  absl::Status AllReduceSum(double* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of statistics", data, n, NcclType::kDouble, NcclReduce::kSum, timeout);
  }
  absl::Status AllReduceMax(double* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of maxima", data, n, NcclType::kDouble, NcclReduce::kMax, timeout);
  }
  absl::StatusOr<bool> AllAgree(bool value, absl::Duration timeout) override {
    float flag = value ? 1.0f : 0.0f;
    const absl::Status status =
        AllReduce("agreement on a finite gradient", &flag, 1, NcclType::kFloat, NcclReduce::kMin, timeout);
    if (!status.ok()) return status;
    return flag == 1.0f;
  }

  absl::Status Broadcast(std::string* bytes, absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    int64_t size = rank() == 0 ? static_cast<int64_t>(bytes->size()) : 0;
    absl::Status status = BroadcastFrom0("broadcast of a size", &size, sizeof(size), deadline);
    if (!status.ok()) return status;
    if (size < 0 || size > kMaxBroadcastBytes) {
      return absl::InternalError(absl::StrCat("broadcast of ", size, " bytes; limit ", kMaxBroadcastBytes));
    }
    bytes->resize(static_cast<size_t>(size));
    return BroadcastFrom0("broadcast of a step", bytes->data(), size,
                          std::max(deadline, absl::Now() + absl::Seconds(1)));
  }
  absl::Status Broadcast(float* data, int64_t n, absl::Duration timeout) override {
    return BroadcastFrom0("broadcast of the state", data, n * static_cast<int64_t>(sizeof(float)),
                          absl::Now() + timeout);
  }
  absl::Status Barrier(absl::Duration timeout) override {
    float nothing = 0;
    return AllReduce("barrier of learner ranks", &nothing, 1, NcclType::kFloat, NcclReduce::kSum, timeout);
  }

 private:
  using Operation = std::function<absl::Status(NcclApi&, void* memory, uint64_t count, void* comm, void* stream)>;

  absl::Status AllReduce(const char* what, void* data, int64_t n, NcclType type, NcclReduce reduce,
                         absl::Duration timeout) {
    return InPieces(what, data, static_cast<uint64_t>(n), SizeOf(type), absl::Now() + timeout,
                    [type, reduce](NcclApi& nccl, void* memory, uint64_t count, void* comm, void* stream) {
                      return nccl.AllReduce(memory, count, type, reduce, comm, stream);
                    });
  }
  absl::Status BroadcastFrom0(const char* what, void* data, int64_t bytes, absl::Time deadline) {
    return InPieces(what, data, static_cast<uint64_t>(bytes), 1, deadline,
                    [](NcclApi& nccl, void* memory, uint64_t count, void* comm, void* stream) {
                      return nccl.Broadcast(memory, count, comm, stream);
                    });
  }

  // In place on the device; from the host piece by piece. All ranks cut alike only if all have the data on the same
  // side, as they do: each runs the same code.
  absl::Status InPieces(const char* name, void* data, uint64_t count, uint64_t size, absl::Time deadline,
                        const Operation& operation) {
    const std::string what = absl::StrCat(name, " (this is rank ", rank(), ")");
    if (count == 0) return absl::OkStatus();
    if (device_->runtime->IsDeviceMemory(data)) return Run(what, data, count, deadline, operation);
    const uint64_t piece = static_cast<uint64_t>(kStagedPiece) / size;
    for (uint64_t at = 0; at < count; at += piece) {
      const uint64_t n = std::min(piece, count - at);
      char* const host = static_cast<char*>(data) + at * size;
      absl::Status status = Copy(what, staging_.memory, host, n * size, deadline);
      if (status.ok()) status = Run(what, staging_.memory, n, deadline, operation);
      if (status.ok()) status = Copy(what, host, staging_.memory, n * size, deadline);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  absl::Status Run(const std::string& what, void* memory, uint64_t count, absl::Time deadline,
                   const Operation& operation) {
    return group_.Run(what, deadline, [&](NcclApi& nccl, void* comm, void* stream) {
      return operation(nccl, memory, count, comm, stream);
    });
  }
  absl::Status Copy(const std::string& what, void* to, const void* from, uint64_t bytes, absl::Time deadline) {
    return group_.Run(what, deadline,
                      [&](NcclApi&, void*, void* stream) { return device_->runtime->Copy(to, from, bytes, stream); });
  }

  const std::shared_ptr<CommDevice> device_;
  NcclGroup group_;
  StagingPool::Buffer staging_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> MakeNcclCollectives(const NcclCollectivesOptions& options) {
  auto rank = std::make_unique<NcclRank>(options.device);
  NcclGroupOptions group;
  group.rank = options.rank;
  group.size = options.world_size;
  group.table = MakeGrpcGroupTable(MakeChannel(options.rank0_address), options.prefix);
  group.deadline = absl::Now() + options.connect_timeout;
  group.share_failures = true;
  const absl::Status joined = rank->Join(group);
  if (!joined.ok()) {
    return absl::Status(joined.code(), absl::StrCat("learner ranks cannot meet at ", options.rank0_address, ": ",
                                                    std::string(joined.message())));
  }
  return rank;
}

}  // namespace lockstep
