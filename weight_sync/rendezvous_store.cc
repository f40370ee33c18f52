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

class LocalGroupTable : public GroupTable {
 public:
  LocalGroupTable(std::shared_ptr<RendezvousTable> table, const std::string& prefix)
      : table_(std::move(table)), prefix_(prefix + "/") {}

  absl::Status Set(const std::string& key, const std::string& value, absl::Time) override {
    return table_->Set(prefix_ + key, value);
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline,
                                  const std::function<bool()>& cancelled) override {
    while (true) {
      absl::StatusOr<std::string> value = table_->Get(prefix_ + key, deadline - absl::Now(), cancelled);
      if (value.ok() || !absl::IsDeadlineExceeded(value.status()) || absl::Now() >= deadline) return value;
    }
  }
  void Erase(const std::string& key) override { table_->Erase(prefix_ + key); }

 private:
  const std::shared_ptr<RendezvousTable> table_;
  const std::string prefix_;
};

class GrpcGroupTable : public GroupTable {
 public:
  GrpcGroupTable(std::shared_ptr<grpc::Channel> channel, const std::string& prefix)
      : stub_(v1::WeightSource::NewStub(channel)), prefix_(prefix + "/") {}

  absl::Status Set(const std::string& key, const std::string& value, absl::Time deadline) override {
    v1::StoreSetRequest request;
    request.set_key(prefix_ + key);
    request.set_value(value);
    v1::StoreSetResponse response;
    grpc::ClientContext context;
    SetDeadline(context, std::max(0.0, absl::ToDoubleSeconds(deadline - absl::Now())));
    context.set_wait_for_ready(true);  // rank 0 may still be starting
    return ToAbslStatus(stub_->StoreSet(&context, request, &response));
  }

  absl::StatusOr<std::string> Get(const std::string& key, absl::Time deadline,
                                  const std::function<bool()>& cancelled) override {
    while (true) {
      if (cancelled && cancelled()) return absl::CancelledError("the wait was cancelled");
      const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
      absl::StatusOr<std::string> value = GetSlice(prefix_ + key, std::min(left, kGetSlice));
      if (value.ok() || !absl::IsDeadlineExceeded(value.status()) || left <= kGetSlice) return value;
    }
  }
  void Erase(const std::string&) override {}

 private:
  absl::StatusOr<std::string> GetSlice(const std::string& key, absl::Duration timeout) {
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

  const std::unique_ptr<v1::WeightSource::Stub> stub_;
  const std::string prefix_;
};

// A group's table for Gloo: one deadline over all calls, and exceptions.
class GlooStore : public gloo::rendezvous::Store {
 public:
  GlooStore(std::shared_ptr<GroupTable> table, RendezvousOptions options)
      : table_(std::move(table)), options_(std::move(options)), deadline_(absl::Now() + options_.timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    const absl::Status status = table_->Set(key, std::string(data.begin(), data.end()), deadline_);
    if (!status.ok()) Throw("set", key, status);
  }
  std::vector<char> get(const std::string& key) override {
    if (options_.cancelled && options_.cancelled()) Throw("get", key, absl::CancelledError("closed"));
    const absl::StatusOr<std::string> value = table_->Get(key, deadline_, options_.cancelled);
    if (value.ok()) return std::vector<char>(value->begin(), value->end());
    Throw("get", key,
          absl::IsDeadlineExceeded(value.status()) ? absl::DeadlineExceededError("Timed out: the member has not joined")
                                                   : value.status());
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override { wait(keys); }

 private:
  [[noreturn]] void Throw(const char* operation, const std::string& key, const absl::Status& status) const {
    throw gloo::IoException(absl::StrCat("rendezvous ", operation, " ", options_.prefix, "/", key, ": ",
                                         status.message().empty() ? status.ToString() : std::string(status.message())));
  }

  const std::shared_ptr<GroupTable> table_;
  const RendezvousOptions options_;
  const absl::Time deadline_;
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

void RendezvousTable::Erase(const std::string& key) {
  MutexLock lock(&mutex_);
  values_.erase(key);
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

std::shared_ptr<GroupTable> MakeLocalGroupTable(std::shared_ptr<RendezvousTable> table, const std::string& prefix) {
  return std::make_shared<LocalGroupTable>(std::move(table), prefix);
}

std::shared_ptr<GroupTable> MakeGrpcGroupTable(std::shared_ptr<grpc::Channel> channel, const std::string& prefix) {
  return std::make_shared<GrpcGroupTable>(std::move(channel), prefix);
}

std::unique_ptr<gloo::rendezvous::Store> MakeGrpcRendezvousStore(std::shared_ptr<grpc::Channel> channel,
                                                                 RendezvousOptions options) {
  std::shared_ptr<GroupTable> group = MakeGrpcGroupTable(std::move(channel), options.prefix);
  return MakeRendezvousStore(std::move(group), std::move(options));
}

std::unique_ptr<gloo::rendezvous::Store> MakeLocalRendezvousStore(std::shared_ptr<RendezvousTable> table,
                                                                  RendezvousOptions options) {
  std::shared_ptr<GroupTable> group = MakeLocalGroupTable(std::move(table), options.prefix);
  return MakeRendezvousStore(std::move(group), std::move(options));
}

std::unique_ptr<gloo::rendezvous::Store> MakeRendezvousStore(std::shared_ptr<GroupTable> table,
                                                             RendezvousOptions options) {
  return std::make_unique<GlooStore>(std::move(table), std::move(options));
}

}  // namespace lockstep
