// lockstep_rollout_server as a process: its start, its errors in one line, its drain.
#include <fcntl.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/tokenizer/arithmetic.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/channel.h"
#include "proto/rollout.grpc.pb.h"
#include "rollout_server/test_support.h"

extern char** environ;

namespace lockstep {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);

bool WaitFor(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

std::string FileText(const std::string& path) { return ReadFile(path).value_or(""); }

class ServerProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = absl::StrCat(::testing::TempDir(), "/rollout_", getpid(), "_",
                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    const ModelConfig config = TinyConfig();
    std::vector<float> arena(static_cast<size_t>(ParamLayout(config).total_size));
    InitializeArena(config, 1, 0.25f, arena.data());
    ASSERT_TRUE(WriteHfFolder(dir_ + "/model", config, arena.data(), DType::kF16, "").ok());
    ASSERT_TRUE(MakeArithmeticTokenizer(dir_ + "/model").ok());
    WriteConfig("");
  }
  void TearDown() override {
    for (const int pid : children_) {
      if (kill(pid, SIGKILL) == 0) waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(dir_);
  }

  void WriteConfig(const std::string& more) {
    std::ofstream(dir_ + "/config.pbtxt") << "model { path: \"" << dir_ << "/model\" }\n"
                                          << "data { max_prompt_tokens: 64 }\n"
                                          << "rollout { dtype: \"fp16\" max_tokens: 900 threads: 1 max_batch_size: 8\n"
                                          << "  prefill_chunk_tokens: 64 max_groups_in_flight: 4 }\n"
                                          << "numerics: \"matched\"\n"
                                          << more;
  }

  int Start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "rollout_server/lockstep_rollout_server");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDERR_FILENO, (dir_ + "/stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0644);
    int pid = 0;
    EXPECT_EQ(posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&files);
    children_.push_back(pid);
    return pid;
  }
  // The exit code (128 + signal for a death by signal); -1 when the process outlives our patience.
  int ExitCode(int pid) {
    int status = 0;
    if (!WaitFor([&] { return waitpid(pid, &status, WNOHANG) == pid; })) return -1;
    std::erase(children_, pid);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  }
  int StartServing() {
    const int pid =
        Start({absl::StrCat("--config=", dir_, "/config.pbtxt"), absl::StrCat("--address_file=", dir_, "/address"),
               absl::StrCat("--metrics_address_file=", dir_, "/metrics_address")});
    AwaitAddress(pid);
    return pid;
  }
  void AwaitAddress(int pid) {
    WaitFor([&] { return !FileText(dir_ + "/address").empty() || kill(pid, 0) != 0 || Ended(pid); });
    address_ = FileText(dir_ + "/address");
    ASSERT_THAT(address_, ::testing::EndsWith("\n")) << FileText(dir_ + "/stderr");
    address_.pop_back();
  }
  // Whether the child has ended and waits to be collected.
  static bool Ended(int pid) {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
  }
  // A start that fails: exit code 2 and one line that begins with "error: ".
  std::string Refusal(const std::vector<std::string>& arguments) {
    EXPECT_EQ(ExitCode(Start(arguments)), 2);
    std::string text = FileText(dir_ + "/stderr");
    const size_t begin = text.find("error: ");
    EXPECT_NE(begin, std::string::npos) << text;
    std::string line = text.substr(begin);
    EXPECT_EQ(line.find('\n'), line.size() - 1) << text;
    return line;
  }

  std::string dir_;
  std::string address_;
  std::vector<int> children_;
};

// One message to a method given by name, and the first message back; for services without generated stubs here.
std::string RawCall(const std::string& address, const std::string& method, const std::string& request) {
  grpc::GenericStub stub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(context, 30);
  grpc::CompletionQueue queue;
  void* tag = nullptr;
  bool ok = false;
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  grpc::Slice slice(request);
  call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  queue.Next(&tag, &ok);
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  queue.Next(&tag, &ok);
  std::string bytes;
  std::vector<grpc::Slice> slices;
  if (ok && response.Dump(&slices).ok()) {
    for (const grpc::Slice& part : slices) bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return bytes;
}

// grpc.health.v1: HealthCheckRequest{1: service}, HealthCheckResponse{1: status}, 1 = SERVING, 2 = NOT_SERVING.
int Health(const std::string& address, const std::string& service) {
  const std::string request = absl::StrCat("\n", std::string(1, static_cast<char>(service.size())), service);
  const std::string response = RawCall(address, "/grpc.health.v1.Health/Check", request);
  return response.size() == 2 && response[0] == 8 ? response[1] : -1;
}

TEST_F(ServerProcessTest, ServesHealthReflectionAndGroupsAndExitsCleanlyAtSigterm) {
  const int pid = StartServing();
  ASSERT_FALSE(address_.empty());
  EXPECT_EQ(Health(address_, ""), 1);
  EXPECT_EQ(Health(address_, "readiness"), 1);
  EXPECT_THAT(RawCall(address_, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      std::string("\x3a\x01*", 3)),  // list_services
              HasSubstr("lockstep.v1.Rollout"));
  auto stub = v1::Rollout::NewStub(MakeChannel(address_));
  grpc::ClientContext context;
  SetDeadline(context, 60);
  auto stream = stub->Generate(&context);
  v1::GenerateRequest request;
  *request.mutable_group() = TinyGroup(1, 20, 2, 900);
  ASSERT_TRUE(stream->Write(request));
  Samples samples;
  v1::GenerateResponse response;
  while (samples.size() == 0 && stream->Read(&response)) samples.Add(response);
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  while (stream->Read(&response)) samples.Add(response);
  EXPECT_EQ(samples.finished(), 2u) << "streams end after their samples";
  EXPECT_EQ(samples.at(1, 1).tokens.size(), 900u);
  EXPECT_EQ(ExitCode(pid), 0) << FileText(dir_ + "/stderr");
}

TEST_F(ServerProcessTest, ASecondSigtermExitsNow) {
  const int pid = StartServing();
  ASSERT_FALSE(address_.empty());
  auto stub = v1::Rollout::NewStub(MakeChannel(address_));
  grpc::ClientContext context;
  SetDeadline(context, 60);
  auto stream = stub->Generate(&context);
  v1::GenerateRequest request;
  // Nobody reads the stream, so the drain cannot end by itself.
  for (uint64_t g = 1; g <= 4; ++g) {
    *request.mutable_group() = TinyGroup(g, 4, 1000, 900);
    ASSERT_TRUE(stream->Write(request));
  }
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  ASSERT_TRUE(WaitFor([&] { return Health(address_, "readiness") != 1; }));
  ASSERT_EQ(kill(pid, 0), 0) << "still draining";
  ASSERT_EQ(kill(pid, SIGTERM), 0);
  EXPECT_EQ(ExitCode(pid), 128 + SIGTERM);
}

TEST_F(ServerProcessTest, EndsWhenItsParentIsGone) {
  const int sleeper = fork();
  if (sleeper == 0) {
    pause();
    _exit(0);
  }
  const int pid = Start({absl::StrCat("--config=", dir_, "/config.pbtxt"),
                         absl::StrCat("--address_file=", dir_, "/address"), absl::StrCat("--parent_pid=", sleeper)});
  AwaitAddress(pid);
  ASSERT_EQ(kill(sleeper, SIGKILL), 0);
  waitpid(sleeper, nullptr, 0);
  EXPECT_EQ(ExitCode(pid), 0) << FileText(dir_ + "/stderr");
}

TEST_F(ServerProcessTest, BadStartsAreOneLineAndExitCodeTwo) {
  EXPECT_THAT(Refusal({}), HasSubstr("--config is missing"));
  EXPECT_THAT(Refusal({absl::StrCat("--config=", dir_, "/nowhere")}), HasSubstr("nowhere"));
  const std::string config = absl::StrCat("--config=", dir_, "/config.pbtxt");
  WriteConfig("nonsense: 3\n");
  EXPECT_THAT(Refusal({config}), HasSubstr("not a RunConfig"));
  WriteConfig("");
  EXPECT_THAT(Refusal({config, "--port=99999"}), HasSubstr("port 99999"));
  std::filesystem::rename(dir_ + "/model/model.safetensors", dir_ + "/away");
  EXPECT_THAT(Refusal({config}), HasSubstr("model.safetensors"));
  std::ofstream(dir_ + "/model/model.safetensors") << "short";
  EXPECT_THAT(Refusal({config}), HasSubstr("model.safetensors"));
  std::filesystem::remove_all(dir_ + "/model");
  EXPECT_THAT(Refusal({config}), HasSubstr("/model"));
}

TEST_F(ServerProcessTest, APortInUseIsOneLineAndExitCodeTwo) {
  StartServing();
  ASSERT_FALSE(address_.empty());
  const std::string port = address_.substr(address_.rfind(':') + 1);
  const std::string line = Refusal({absl::StrCat("--config=", dir_, "/config.pbtxt"), absl::StrCat("--port=", port)});
  EXPECT_THAT(line, HasSubstr("Address already in use"));
  EXPECT_THAT(line, HasSubstr(port));
}

}  // namespace
}  // namespace lockstep
