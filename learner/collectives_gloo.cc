#include <gloo/allreduce.h>
#include <gloo/barrier.h>
#include <gloo/broadcast.h>
#include <gloo/math.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "learner/collectives.h"
#include "proto/channel.h"
#include "weight_sync/gloo_group.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

std::chrono::milliseconds Milliseconds(absl::Duration timeout) {
  return std::chrono::milliseconds(absl::ToInt64Milliseconds(timeout));
}

class GlooRank : public Collectives {
 public:
  explicit GlooRank(std::shared_ptr<gloo::Context> context) : context_(std::move(context)) {}
  int rank() const override { return context_->rank; }
  int world_size() const override { return context_->size; }

  absl::Status AllReduceSum(float* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of gradients", data, n, &gloo::sum<float>, timeout);
  }
  absl::Status AllReduceSum(double* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of statistics", data, n, &gloo::sum<double>, timeout);
  }
  absl::Status AllReduceMax(double* data, int64_t n, absl::Duration timeout) override {
    return AllReduce("all-reduce of maxima", data, n, &gloo::max<double>, timeout);
  }

  absl::StatusOr<bool> AllAgree(bool value, absl::Duration timeout) override {
    float flag = value ? 1.0f : 0.0f;
    absl::Status status = AllReduce("agreement on a finite gradient", &flag, 1, &gloo::min<float>, timeout);
    if (!status.ok()) return status;
    return flag == 1.0f;
  }

  absl::Status Broadcast(std::string* bytes, absl::Duration timeout) override {
    int64_t size = rank() == 0 ? static_cast<int64_t>(bytes->size()) : 0;
    const absl::Time deadline = absl::Now() + timeout;
    absl::Status status = BroadcastFrom0("broadcast of a size", &size, 1, timeout);
    if (!status.ok()) return status;
    if (size < 0 || size > kMaxBroadcastBytes) {
      return absl::InternalError(absl::StrCat("broadcast of ", size, " bytes; limit ", kMaxBroadcastBytes));
    }
    bytes->resize(static_cast<size_t>(size));
    if (size == 0) return absl::OkStatus();
    return BroadcastFrom0("broadcast of a step", bytes->data(), size,
                          std::max(deadline - absl::Now(), absl::Seconds(1)));
  }

  absl::Status Broadcast(float* data, int64_t n, absl::Duration timeout) override {
    return BroadcastFrom0("broadcast of the state", data, n, timeout);
  }

  absl::Status Barrier(absl::Duration timeout) override {
    return CatchGloo(absl::StrCat("barrier of learner ranks (this is rank ", rank(), ")"), [&] {
      gloo::BarrierOptions options(context_);
      options.setTimeout(Milliseconds(timeout));
      gloo::barrier(options);
    });
  }

 private:
  template <typename T>
  absl::Status AllReduce(const char* what, T* data, int64_t n, void (*reduce)(void*, const void*, const void*, size_t),
                         absl::Duration timeout) {
    return CatchGloo(absl::StrCat(what, " (this is rank ", rank(), ")"), [&] {
      gloo::AllreduceOptions options(context_);
      options.setAlgorithm(gloo::AllreduceOptions::Algorithm::RING);
      options.setOutput(data, static_cast<size_t>(n));
      options.setReduceFunction(reduce);
      options.setTimeout(Milliseconds(timeout));
      gloo::allreduce(options);
    });
  }

  template <typename T>
  absl::Status BroadcastFrom0(const char* what, T* data, int64_t n, absl::Duration timeout) {
    return CatchGloo(absl::StrCat(what, " (this is rank ", rank(), ")"), [&] {
      gloo::BroadcastOptions options(context_);
      options.setOutput(data, static_cast<size_t>(n));
      options.setRoot(0);
      options.setTimeout(Milliseconds(timeout));
      gloo::broadcast(options);
    });
  }

  std::shared_ptr<gloo::Context> context_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> MakeGlooCollectives(const GlooCollectivesOptions& options) {
  RendezvousOptions rendezvous;
  rendezvous.prefix = options.prefix;
  rendezvous.timeout = options.connect_timeout;
  auto store = MakeGrpcRendezvousStore(MakeChannel(options.rank0_address), rendezvous);
  GlooGroupOptions group;
  group.rank = options.rank;
  group.size = options.world_size;
  group.route_to = options.rank0_address;
  group.timeout = options.connect_timeout;
  auto context = ConnectGlooGroup(group, *store);
  if (!context.ok()) {
    return absl::Status(context.status().code(), absl::StrCat("learner ranks cannot meet at ", options.rank0_address,
                                                              ": ", std::string(context.status().message())));
  }
  return std::make_unique<GlooRank>(*std::move(context));
}

}  // namespace lockstep
