#include "learner/control_service.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

// Every watcher holds a thread.
constexpr int kMaxWatchers = 64;
constexpr absl::Duration kWatchTick = absl::Milliseconds(500);
constexpr absl::Duration kCheckpointTimeout = absl::Seconds(600);

class ControlService : public v1::LearnerControl::Service {
 public:
  ControlService(RunMonitor* monitor, std::function<void(const std::string&)> add_server)
      : monitor_(monitor), add_server_(std::move(add_server)) {}

  grpc::Status GetStatus(grpc::ServerContext*, const v1::StatusRequest*, v1::RunStatus* status) override {
    *status = monitor_->status();
    return grpc::Status::OK;
  }

  // The status as it is, then one message an event, until the run has ended or the client has gone.
  grpc::Status Watch(grpc::ServerContext* context, const v1::WatchRequest*,
                     grpc::ServerWriter<v1::RunStatus>* writer) override {
    struct Count {
      std::atomic<int>& watchers;
      ~Count() { --watchers; }
    } count{watchers_};
    if (++watchers_ > kMaxWatchers) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, absl::StrCat(kMaxWatchers, " clients watch already"));
    }
    uint64_t next = monitor_->next_event();
    v1::RunStatus first = monitor_->status();
    if (!writer->Write(first) || first.ended()) return grpc::Status::OK;
    while (!context->IsCancelled()) {
      for (const v1::RunStatus& event : monitor_->WaitForEvents(&next, kWatchTick)) {
        if (!writer->Write(event) || event.ended()) return grpc::Status::OK;
      }
    }
    return grpc::Status::CANCELLED;
  }

  grpc::Status Pause(grpc::ServerContext*, const v1::PauseRequest*, v1::PauseResponse*) override {
    monitor_->RequestPause(true);
    return grpc::Status::OK;
  }
  grpc::Status Resume(grpc::ServerContext*, const v1::ResumeRequest*, v1::ResumeResponse*) override {
    monitor_->RequestPause(false);
    return grpc::Status::OK;
  }
  grpc::Status Stop(grpc::ServerContext*, const v1::StopRequest*, v1::StopResponse*) override {
    monitor_->RequestStop();
    return grpc::Status::OK;
  }

  grpc::Status Checkpoint(grpc::ServerContext* context, const v1::CheckpointRequest*,
                          v1::CheckpointResponse* response) override {
    const absl::Duration left = absl::FromChrono(context->deadline()) - absl::Now();
    auto path = monitor_->RequestCheckpoint(std::min(left, kCheckpointTimeout));
    if (!path.ok()) return ToGrpcStatus(path.status());
    response->set_path(*path);
    return grpc::Status::OK;
  }

  grpc::Status AddRolloutServer(grpc::ServerContext*, const v1::AddRolloutServerRequest* request,
                                v1::AddRolloutServerResponse*) override {
    if (!add_server_) {
      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "this run uses no rollout servers");
    }
    if (request->address().find(':') == std::string::npos) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                          absl::StrCat("address '", request->address(), "' is not host:port"));
    }
    add_server_(request->address());
    return grpc::Status::OK;
  }

 private:
  RunMonitor* const monitor_;
  const std::function<void(const std::string&)> add_server_;
  std::atomic<int> watchers_{0};
};

}  // namespace

std::unique_ptr<v1::LearnerControl::Service> MakeControlService(RunMonitor* monitor,
                                                                std::function<void(const std::string&)> add_server) {
  return std::make_unique<ControlService>(monitor, std::move(add_server));
}

}  // namespace lockstep
