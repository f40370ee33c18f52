// Broadcast over a Gloo TCP mesh by a binomial tree from rank 0 (as gloo::broadcast), but with buffers that another
// thread can abort: a control-plane death must not wait for the bucket's timeout.
#include <gloo/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/unbound_buffer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/mutex.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/gloo_group.h"
#include "weight_sync/rendezvous_store.h"
#include "weight_sync/transport.h"

namespace lockstep {
namespace {

std::chrono::milliseconds MillisecondsUntil(absl::Time deadline) {
  return std::chrono::milliseconds(std::max<int64_t>(1, absl::ToInt64Milliseconds(deadline - absl::Now())));
}

class GlooTransport : public WeightTransport {
 public:
  explicit GlooTransport(std::shared_ptr<GroupTable> table) : table_(std::move(table)) {}
  ~GlooTransport() override { Close(); }

  absl::Status Join(const TransportGroup& group, absl::Time deadline) override {
    // Half for the addresses of all members to come, half for the connections: Gloo counts them one after the other.
    const absl::Duration timeout = std::max((deadline - absl::Now()) / 2, absl::Milliseconds(1));
    RendezvousOptions rendezvous;
    rendezvous.timeout = timeout;
    rendezvous.cancelled = [this] { return closed_.load(); };
    const std::unique_ptr<gloo::rendezvous::Store> store = MakeRendezvousStore(table_, std::move(rendezvous));
    GlooGroupOptions options;
    options.rank = group.rank;
    options.size = group.size;
    options.route_to = group.route_to;
    options.timeout = timeout;
    absl::StatusOr<std::shared_ptr<gloo::Context>> context = ConnectGlooGroup(options, *store);
    if (!context.ok()) return closed_ ? Closed() : context.status();
    rank_ = group.rank;
    size_ = group.size;
    MutexLock lock(&mutex_);
    context_ = *std::move(context);
    return closed_ ? Closed() : absl::OkStatus();
  }

  absl::Status Send(uint64_t bucket, const void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(rank_ == 0, "only rank 0 sends");
    if (FailpointFires("transport.skip_send")) return absl::OkStatus();
    // Gloo's buffers are not const; a send does not write.
    return Transfer(absl::StrCat("sending bucket ", bucket), bucket, const_cast<void*>(data), bytes, deadline);
  }

  absl::Status Receive(uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) override {
    LOCKSTEP_CHECK(rank_ != 0, "rank 0 does not receive");
    const absl::Status status = Transfer(absl::StrCat("receiving bucket ", bucket), bucket, data, bytes, deadline);
    if (status.ok() && FailpointFires("transport.corrupt_bucket")) static_cast<char*>(data)[bytes / 2] ^= 0x10;
    return status;
  }

  void Close() override {
    closed_ = true;
    MutexLock lock(&mutex_);
    if (active_ != nullptr) {
      active_->abortWaitRecv();
      active_->abortWaitSend();  // the thread in Transfer closes the connections
    } else {
      CloseConnections();
    }
  }

 private:
  absl::Status Closed() const { return absl::CancelledError("the control plane closed the group"); }

  void CloseConnections() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (context_ == nullptr) return;
    // Peers see a closed connection at once instead of at their timeout.
    (void)CatchGloo("closing", [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { context_->closeConnections(); });
    context_.reset();
  }

  absl::Status Transfer(const std::string& what, uint64_t bucket, void* data, uint64_t bytes, absl::Time deadline) {
    std::shared_ptr<gloo::Context> context;
    std::unique_ptr<gloo::transport::UnboundBuffer> buffer;
    absl::Status status = CatchGloo(what, [&] {
      MutexLock lock(&mutex_);
      if (closed_ || context_ == nullptr) return;
      context = context_;
      buffer = context->createUnboundBuffer(data, bytes);
      active_ = buffer.get();
    });
    if (!status.ok()) return status;
    if (buffer == nullptr) return Closed();
    bool aborted = false;
    status = CatchGloo(what, [&] { aborted = !Tree(*buffer, bucket, deadline); });
    MutexLock lock(&mutex_);
    active_ = nullptr;
    if (aborted || closed_ || !status.ok()) CloseConnections();
    // The destructor waits until no connection writes into `data` any more.
    buffer.reset();
    if (aborted || closed_) return Closed();
    return status;
  }

  // Member r receives from r with its highest bit cleared, then passes on to r + 2^i for every greater power of two.
  // False when aborted.
  bool Tree(gloo::transport::UnboundBuffer& buffer, uint64_t bucket, absl::Time deadline) const {
    int bit = 1;
    if (rank_ > 0) {
      while (bit * 2 <= rank_) bit *= 2;
      buffer.recv(rank_ - bit, bucket);
      if (!buffer.waitRecv(MillisecondsUntil(deadline))) return false;
      bit *= 2;
    }
    int sends = 0;
    for (; rank_ + bit < size_; bit *= 2, ++sends) buffer.send(rank_ + bit, bucket);
    for (int i = 0; i < sends; ++i) {
      if (!buffer.waitSend(MillisecondsUntil(deadline))) return false;
    }
    return true;
  }

  const std::shared_ptr<GroupTable> table_;
  int rank_ = 0;
  int size_ = 1;
  std::atomic<bool> closed_{false};
  Mutex mutex_;
  std::shared_ptr<gloo::Context> context_ ABSL_GUARDED_BY(mutex_);
  gloo::transport::UnboundBuffer* active_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace

std::unique_ptr<WeightTransport> MakeGlooTransport(std::shared_ptr<GroupTable> table) {
  return std::make_unique<GlooTransport>(std::move(table));
}

Transports GlooOnly() { return {{"gloo", {MakeGlooTransport}}}; }

std::string TransportNames(const Transports& transports) {
  std::string names;
  for (const auto& [name, make] : transports) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  return names;
}

absl::Time JoinDeadline(const WeightTransport& transport, absl::Time now, absl::Time update_deadline) {
  return std::min(update_deadline, now + transport.join_timeout());
}

absl::Time BucketDeadline(uint64_t bytes, absl::Time now, absl::Time update_deadline) {
  const double seconds = static_cast<double>(bytes) / kExpectedBytesPerSecond * kBucketSafety;
  return std::min(update_deadline, now + absl::Seconds(seconds) + kBucketConstant);
}

}  // namespace lockstep
