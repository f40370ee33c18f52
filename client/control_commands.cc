// status, watch, pause, resume, stop, checkpoint: calls to the learner of a run that is there already.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "client/child.h"
#include "client/commands.h"
#include "client/view.h"
#include "proto/channel.h"
#include "proto/learner.grpc.pb.h"

namespace lockstep {
namespace {

constexpr double kCallSeconds = 10;
constexpr double kStopSeconds = 3600;  // a step and a checkpoint may take long

absl::StatusOr<std::unique_ptr<v1::LearnerControl::Stub>> Connect(const std::vector<std::string>& arguments,
                                                                  const std::string& command, std::string* run) {
  const absl::StatusOr<Arguments> split = SplitArguments(arguments, {});
  if (!split.ok()) return split.status();
  if (split->words.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat("usage: lockstep ", command, " RUN"));
  }
  *run = split->words[0];
  const absl::StatusOr<std::string> address = LearnerAddress(*run);
  if (!address.ok()) return address.status();
  return v1::LearnerControl::NewStub(MakeChannel(*address));
}

absl::Status Explain(const grpc::Status& status, const std::string& run) {
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return absl::UnavailableError(absl::StrCat("the learner of ", run, " does not answer (", status.error_message(),
                                               "); the run has ended, or `lockstep run ... --resume` brings it back"));
  }
  return ToAbslStatus(status);
}

template <typename Request, typename Response, typename Method>
int Call(const std::vector<std::string>& arguments, const std::string& command, double seconds, Method method,
         Response* response) {
  std::string run;
  const auto stub = Connect(arguments, command, &run);
  if (!stub.ok()) return Fail(stub.status(), 2);
  grpc::ClientContext context;
  SetDeadline(context, seconds);
  const grpc::Status status = ((**stub).*method)(&context, Request(), response);
  if (!status.ok()) return Fail(Explain(status, run));
  return 0;
}

}  // namespace

absl::StatusOr<std::string> LearnerAddress(const std::string& run) {
  struct stat info;
  if (stat(run.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    const std::string path = run + "/learner.address";
    if (std::string address = FirstLine(path); !address.empty()) return address;
    return absl::NotFoundError(absl::StrCat(path, " is not there: no run was started in this folder"));
  }
  if (run.find(':') != std::string::npos) return run;
  return absl::NotFoundError(absl::StrCat("'", run, "' is neither a run folder nor host:port"));
}

int StatusCommand(const std::vector<std::string>& arguments) {
  v1::RunStatus status;
  const int code =
      Call<v1::StatusRequest>(arguments, "status", kCallSeconds, &v1::LearnerControl::Stub::GetStatus, &status);
  if (code == 0) std::printf("%s", StatusBlock(status).c_str());
  return code;
}

int WatchCommand(const std::vector<std::string>& arguments) {
  std::string run;
  const auto stub = Connect(arguments, "watch", &run);
  if (!stub.ok()) return Fail(stub.status(), 2);
  View view(stdout, isatty(1) != 0);
  grpc::ClientContext context;  // follows the run for as long as it lasts; keepalive ends it when the learner is gone
  const auto reader = (*stub)->Watch(&context, v1::WatchRequest());
  v1::RunStatus status;
  while (reader->Read(&status)) {
    view.Show(status);
    if (status.ended()) return status.exit_code();
  }
  const grpc::Status end = reader->Finish();
  return end.ok() ? 0 : Fail(Explain(end, run));
}

int PauseCommand(const std::vector<std::string>& arguments) {
  v1::PauseResponse response;
  return Call<v1::PauseRequest>(arguments, "pause", kCallSeconds, &v1::LearnerControl::Stub::Pause, &response);
}

int ResumeCommand(const std::vector<std::string>& arguments) {
  v1::ResumeResponse response;
  return Call<v1::ResumeRequest>(arguments, "resume", kCallSeconds, &v1::LearnerControl::Stub::Resume, &response);
}

int StopCommand(const std::vector<std::string>& arguments) {
  v1::StopResponse response;
  return Call<v1::StopRequest>(arguments, "stop", kStopSeconds, &v1::LearnerControl::Stub::Stop, &response);
}

int CheckpointCommand(const std::vector<std::string>& arguments) {
  v1::CheckpointResponse response;
  const int code = Call<v1::CheckpointRequest>(arguments, "checkpoint", kStopSeconds,
                                               &v1::LearnerControl::Stub::Checkpoint, &response);
  if (code == 0) std::printf("%s\n", response.path().c_str());
  return code;
}

}  // namespace lockstep
