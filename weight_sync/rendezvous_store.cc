#include "weight_sync/rendezvous_store.h"

#include <gloo/common/error.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

constexpr absl::Duration kPollPeriod = absl::Milliseconds(100);
// A client asks in slices, so that a cancelled member stops waiting soon and holds a server thread only for a moment.
constexpr absl::Duration kGetSlice = absl::Milliseconds(500);
constexpr absl::Duration kCallGrace = absl::Seconds(2);

// What both stores share: prefix, one deadline over all calls, exceptions for Gloo.
class DeadlineStore : public gloo::rendezvous::Store {
 public:
  explicit DeadlineStore(RendezvousOptions options)
      : options_(std::move(options)), deadline_(absl::Now() + options_.timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    const absl::Status status = Set(absl::StrCat(options_.prefix, "/", key), std::string(data.begin(), data.end()));
    if (!status.ok()) Throw("set", key, status);
  }

  std::vector<char> get(const std::string& key) override {
    const std::string full_key = absl::StrCat(options_.prefix, "/", key);
    while (true) {
      if (options_.cancelled && options_.cancelled()) Throw("get", key, absl::CancelledError("closed"));
      const absl::Duration left = deadline_ - absl::Now();
      if (left <= absl::ZeroDuration()) {
        Throw("get", key, absl::DeadlineExceededError("Timed out: the member has not joined"));
      }
      const absl::StatusOr<std::string> value = Get(full_key, std::min(left, kGetSlice));
      if (value.ok()) return std::vector<char>(value->begin(), value->end());
      if (!absl::IsDeadlineExceeded(value.status())) Throw("get", key, value.status());
    }
  }

  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override { wait(keys); }

 protected:
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
  absl::Time deadline() const { return deadline_; }
  const RendezvousOptions& options() const { return options_; }

 private:
  [[noreturn]] void Throw(const char* operation, const std::string& key, const absl::Status& status) const {
    throw gloo::IoException(absl::StrCat("rendezvous ", operation, " ", options_.prefix, "/", key, ": ",
                                         status.message().empty() ? status.ToString() : std::string(status.message())));
  }

  const RendezvousOptions options_;
  const absl::Time deadline_;
};

class LocalStore : public DeadlineStore {
 public:
  LocalStore(std::shared_ptr<RendezvousTable> table, RendezvousOptions options)
      : DeadlineStore(std::move(options)), table_(std::move(table)) {}

 protected:
  absl::Status Set(const std::string& key, const std::string& value) override { return table_->Set(key, value); }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    return table_->Get(key, timeout, options().cancelled);
  }

 private:
  std::shared_ptr<RendezvousTable> table_;
};

class GrpcStore : public DeadlineStore {
 public:
  GrpcStore(std::shared_ptr<grpc::Channel> channel, RendezvousOptions options)
      : DeadlineStore(std::move(options)), stub_(v1::WeightSource::NewStub(channel)) {}

 protected:
  absl::Status Set(const std::string& key, const std::string& value) override {
    v1::StoreSetRequest request;
    request.set_key(key);
    request.set_value(value);
    v1::StoreSetResponse response;
    grpc::ClientContext context;
    SetDeadline(context, std::max(0.0, absl::ToDoubleSeconds(deadline() - absl::Now())));
    context.set_wait_for_ready(true);  // rank 0 may still be starting
    return ToAbslStatus(stub_->StoreSet(&context, request, &response));
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    v1::StoreGetRequest request;
    request.set_key(key);
    request.set_timeout_ms(static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Milliseconds(timeout))));
    v1::StoreGetResponse response;
    grpc::ClientContext context;
    SetDeadline(context, absl::ToDoubleSeconds(timeout + kCallGrace));
    const absl::Status status = ToAbslStatus(stub_->StoreGet(&context, request, &response));
    if (!status.ok()) return status;
    return std::move(*response.mutable_value());
  }

 private:
  std::unique_ptr<v1::WeightSource::Stub> stub_;
};

}  // namespace

absl::Status RendezvousTable::Set(const std::string& key, const std::string& value) {
  if (key.empty() || key.size() > kMaxKeyBytes || value.size() > kMaxValueBytes) {
    return absl::InvalidArgumentError(absl::StrCat("rendezvous entry of ", key.size(), " key and ", value.size(),
                                                   " value bytes; limits are ", kMaxKeyBytes, " and ", kMaxValueBytes));
  }
  MutexLock lock(&mutex_);
  if (values_.size() >= kMaxKeys && values_.find(key) == values_.end()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("rendezvous table holds ", kMaxKeys, " keys, its limit; old groups have not been erased"));
  }
  values_[key] = value;
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<std::string> RendezvousTable::Get(const std::string& key, absl::Duration timeout,
                                                 const std::function<bool()>& cancelled) {
  const absl::Time deadline = absl::Now() + std::min(timeout, kMaxWait);
  MutexLock lock(&mutex_);
  while (true) {
    if (closed_) return absl::CancelledError("the rendezvous table is closed");
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    if (cancelled && cancelled()) return absl::CancelledError("the wait was cancelled");
    const absl::Time now = absl::Now();
    if (now >= deadline) return absl::DeadlineExceededError(absl::StrCat("Timed out waiting for key ", key));
    changed_.WaitWithTimeout(&mutex_, std::min(deadline - now, kPollPeriod));
  }
}

void RendezvousTable::ErasePrefix(const std::string& prefix) {
  MutexLock lock(&mutex_);
  auto it = values_.lower_bound(prefix);
  while (it != values_.end() && it->first.compare(0, prefix.size(), prefix) == 0) it = values_.erase(it);
}

void RendezvousTable::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
  changed_.SignalAll();
}

size_t RendezvousTable::size() const {
  MutexLock lock(&mutex_);
  return values_.size();
}

grpc::Status RendezvousService::StoreSet(grpc::ServerContext*, const v1::StoreSetRequest* request,
                                         v1::StoreSetResponse*) {
  return ToGrpcStatus(table_->Set(request->key(), request->value()));
}

grpc::Status RendezvousService::StoreGet(grpc::ServerContext* context, const v1::StoreGetRequest* request,
                                         v1::StoreGetResponse* response) {
  const absl::Duration timeout = absl::Milliseconds(
      std::min<uint64_t>(request->timeout_ms(), absl::ToInt64Milliseconds(RendezvousTable::kMaxWait)));
  absl::StatusOr<std::string> value =
      table_->Get(request->key(), timeout, [context] { return context->IsCancelled(); });
  if (!value.ok()) return ToGrpcStatus(value.status());
  response->set_value(*std::move(value));
  return grpc::Status::OK;
}

std::unique_ptr<gloo::rendezvous::Store> MakeGrpcRendezvousStore(std::shared_ptr<grpc::Channel> channel,
                                                                 RendezvousOptions options) {
  return std::make_unique<GrpcStore>(std::move(channel), std::move(options));
}

std::unique_ptr<gloo::rendezvous::Store> MakeLocalRendezvousStore(std::shared_ptr<RendezvousTable> table,
                                                                  RendezvousOptions options) {
  return std::make_unique<LocalStore>(std::move(table), std::move(options));
}

}  // namespace lockstep
