#include "weight_sync/transport_choice.h"

#include <gtest/gtest.h>

#include "weight_sync/sync_test_support.h"

namespace lockstep {
namespace {

const std::vector<std::string> kAll = {"gloo", "ipc", "nccl"};

TransportEnd End(const std::string& who, const std::string& host, const std::string& bus_id,
                 const std::vector<std::string>& transports = kAll) {
  return {who, transports, host, bus_id};
}

TEST(TransportChoiceTest, OneGpuForAllIsIpcAndOneForEachIsNccl) {
  const TransportEnd learner = End("the learner", "m", "gpu0");
  TransportChoice choice = ChooseTransport(learner, {End("a", "m", "gpu0"), End("b", "m", "gpu0")});
  EXPECT_EQ(choice.name, "ipc");
  EXPECT_EQ(choice.why, "the learner and 2 servers share the GPU gpu0");
  choice = ChooseTransport(learner, {End("a", "m", "gpu1"), End("b", "other", "gpu0")});
  EXPECT_EQ(choice.name, "nccl");
  EXPECT_EQ(choice.why, "the learner and 2 servers have a GPU each");
}

TEST(TransportChoiceTest, WhateverStandsInTheWayIsNamedAndGlooIsTaken) {
  const TransportEnd learner = End("the learner", "m", "gpu0");
  const struct {
    TransportEnd learner;
    std::vector<TransportEnd> servers;
    std::string why;
  } cases[] = {
      {End("the learner", "", "", {"gloo"}), {End("a", "m", "gpu1")}, "the learner has no GPU"},
      {learner, {End("a", "m", "gpu0"), End("b", "", "", {"gloo"})}, "b has no GPU"},
      {learner, {End("a", "m", "gpu1"), End("b", "m", "gpu1")}, "a and b share the GPU gpu1, and others do not"},
      {learner,
       {End("a", "m", "gpu0"), End("b", "m", "gpu1")},
       "the learner and a share the GPU gpu0, and others do not"},
      {learner, {End("a", "m", "gpu1", {"gloo", "ipc"})}, "a has no NCCL"},
      {learner, {End("a", "m", "gpu0", {"gloo", "nccl"})}, "a cannot have \"ipc\""},
  };
  for (const auto& one : cases) {
    const TransportChoice choice = ChooseTransport(one.learner, one.servers);
    EXPECT_EQ(choice.name, "gloo");
    EXPECT_EQ(choice.why, one.why);
  }
}

TEST(TransportChoiceTest, WithoutServersTheSnapshotStaysWhereTheLearnerIs) {
  EXPECT_EQ(ChooseTransport(End("the learner", "m", "gpu0"), {}).name, "ipc");
  EXPECT_EQ(ChooseTransport(End("the learner", "", "", {"gloo"}), {}).name, "gloo");
}

// A publisher that chooses by itself, and servers with transports of its choice or of another.
class AutoTest : public ::testing::Test {
 protected:
  void SetUp() override { TestTransport() = "nccl"; }
  void TearDown() override { TestTransport() = "gloo"; }
  static double Committed(LearnerEnd& learner, uint64_t version, const std::vector<std::string>& addresses) {
    const std::vector<float> arena = RandomArena(SmallModel(), version);
    const auto report = learner->Publish(1, version, arena.data(), addresses);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return 0;
    double committed = 0;
    for (const ServerUpdate& server : report->servers) committed += server.status.ok() ? 1 : 0;
    return committed;
  }
};

TEST_F(AutoTest, ThePublisherAsksItsServersBeforeEveryUpdate) {
  LearnerEnd learner(SmallModel(), DType::kF16, 64 << 10, 20, "auto");
  RolloutEnd a(SmallModel()), b(SmallModel());
  EXPECT_EQ(Committed(learner, 1, {}), 0);
  EXPECT_EQ(Committed(learner, 2, {a.address(), b.address()}), 2);
  EXPECT_NE(a.emulated().kept(), "");  // by "nccl": Gloo keeps no group
  std::string dead;
  {
    RolloutEnd gone(SmallModel());
    dead = gone.address();
  }
  EXPECT_EQ(Committed(learner, 3, {a.address(), dead, b.address()}), 2);
  // One that has Gloo only.
  WeightReceiverOptions options;
  options.config = SmallModel();
  const auto service = MakeWeightReceiver(
      options, [](std::shared_ptr<const WeightSet>, const std::string&) -> absl::StatusOr<double> { return 0.0; });
  grpc::ServerBuilder builder;
  builder.RegisterService(service.get());
  absl::StatusOr<ListeningServer> listening = StartServer(builder, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok());
  EXPECT_EQ(Committed(learner, 4, {a.address(), listening->address}), 2);
  EXPECT_EQ(Committed(learner, 5, {a.address(), b.address()}), 2);
  EXPECT_EQ(a.weights()->version, 5u);
  listening->server->Shutdown(std::chrono::system_clock::now());
}

}  // namespace
}  // namespace lockstep
