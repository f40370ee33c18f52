#include "learner/run_monitor.h"

#include <gtest/gtest.h>

#include <thread>

#include "learner/control_service.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

TEST(RunMonitorTest, EveryWatcherSeesEveryEventFromItsOwnStart) {
  RunMonitor monitor("run", "/runs/run", 10);
  uint64_t early = monitor.next_event();
  monitor.Publish([](v1::RunStatus& status) { status.set_step(1); });
  uint64_t late = monitor.next_event();
  monitor.Publish([](v1::RunStatus& status) { status.set_step(2); });
  const auto first = monitor.WaitForEvents(&early, absl::Seconds(10));
  ASSERT_EQ(first.size(), 2);
  EXPECT_EQ(first[0].step(), 1);
  EXPECT_EQ(first[1].step(), 2);
  EXPECT_EQ(monitor.WaitForEvents(&late, absl::Seconds(10)).size(), 1);
  EXPECT_TRUE(monitor.WaitForEvents(&late, absl::Milliseconds(10)).empty());
}

TEST(RunMonitorTest, AWatcherThatIsFarBehindMissesTheOldestEventsOnly) {
  RunMonitor monitor("run", "", 1000);
  uint64_t next = monitor.next_event();
  for (uint64_t i = 1; i <= 1000; ++i) monitor.Publish([i](v1::RunStatus& status) { status.set_step(i); });
  const auto events = monitor.WaitForEvents(&next, absl::Seconds(10));
  EXPECT_EQ(events.size(), 256);
  EXPECT_EQ(events.back().step(), 1000);
}

TEST(RunMonitorTest, ACheckpointRequestWaitsForItsAnswer) {
  RunMonitor monitor("run", "", 10);
  EXPECT_EQ(monitor.RequestCheckpoint(absl::Milliseconds(10)).status().code(), absl::StatusCode::kDeadlineExceeded);
  monitor.WaitForCommand(absl::ZeroDuration());  // that request is seen, and answered too late
  monitor.CheckpointDone(std::string("/runs/run/checkpoints/step-2"));
  std::thread loop([&] {
    monitor.WaitForCommand(absl::Seconds(10));
    EXPECT_TRUE(monitor.checkpoint_requested());
    monitor.CheckpointDone(std::string("/runs/run/checkpoints/step-3"));
  });
  const absl::StatusOr<std::string> path = monitor.RequestCheckpoint(absl::Seconds(20));
  loop.join();
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, "/runs/run/checkpoints/step-3");
  EXPECT_FALSE(monitor.checkpoint_requested());
}

TEST(RunMonitorTest, AStopEndsAPause) {
  RunMonitor monitor("run", "", 10);
  monitor.RequestPause(true);
  EXPECT_TRUE(monitor.paused());
  monitor.RequestStop();
  EXPECT_FALSE(monitor.paused());
  EXPECT_TRUE(monitor.stop_requested());
}

class ControlServiceTest : public testing::Test {
 protected:
  ControlServiceTest() : monitor_("run", "/runs/run", 10) {
    service_ = MakeControlService(&monitor_, [this](const std::string& address) { added_ = address; });
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    auto started = StartServer(builder, "127.0.0.1", 0);
    EXPECT_TRUE(started.ok()) << started.status();
    listening_ = *std::move(started);
    stub_ = v1::LearnerControl::NewStub(MakeChannel(listening_.address));
  }

  RunMonitor monitor_;
  std::string added_;
  std::unique_ptr<v1::LearnerControl::Service> service_;
  ListeningServer listening_;
  std::unique_ptr<v1::LearnerControl::Stub> stub_;
};

TEST_F(ControlServiceTest, WatchGivesTheStatusThenEventsThenTheEnd) {
  grpc::ClientContext context;
  SetDeadline(context, 30);
  auto reader = stub_->Watch(&context, v1::WatchRequest());
  v1::RunStatus status;
  ASSERT_TRUE(reader->Read(&status));
  EXPECT_EQ(status.phase(), v1::RUN_PHASE_STARTING);
  EXPECT_EQ(status.run_dir(), "/runs/run");
  monitor_.Publish([](v1::RunStatus& s) { s.set_step(4); });
  ASSERT_TRUE(reader->Read(&status));
  EXPECT_EQ(status.step(), 4);
  monitor_.Publish([](v1::RunStatus& s) {
    s.set_ended(true);
    s.set_exit_code(1);
  });
  ASSERT_TRUE(reader->Read(&status));
  EXPECT_TRUE(status.ended());
  EXPECT_EQ(status.exit_code(), 1);
  EXPECT_FALSE(reader->Read(&status));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(ControlServiceTest, CommandsReachTheRun) {
  const auto context = [] {
    auto c = std::make_unique<grpc::ClientContext>();
    SetDeadline(*c, 30);
    return c;
  };
  v1::PauseResponse paused;
  ASSERT_TRUE(stub_->Pause(context().get(), v1::PauseRequest(), &paused).ok());
  EXPECT_TRUE(monitor_.paused());
  v1::ResumeResponse resumed;
  ASSERT_TRUE(stub_->Resume(context().get(), v1::ResumeRequest(), &resumed).ok());
  EXPECT_FALSE(monitor_.paused());
  v1::StopResponse stopped;
  ASSERT_TRUE(stub_->Stop(context().get(), v1::StopRequest(), &stopped).ok());
  EXPECT_TRUE(monitor_.stop_requested());
  v1::AddRolloutServerRequest add;
  v1::AddRolloutServerResponse added;
  add.set_address("nonsense");
  EXPECT_EQ(stub_->AddRolloutServer(context().get(), add, &added).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  add.set_address("127.0.0.1:7000");
  ASSERT_TRUE(stub_->AddRolloutServer(context().get(), add, &added).ok());
  EXPECT_EQ(added_, "127.0.0.1:7000");
}

}  // namespace
}  // namespace lockstep
