// What goes on from update to update: the group and the memory of snapshots; and that weights on a device stay there.
#include "weight_sync/kept_group.h"

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/sync_test_support.h"

namespace lockstep {
namespace {

class KeptGroupTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    TestTransport() = GetParam();
    ASSERT_TRUE(SetFailpoints("").ok());
  }
  void TearDown() override { ASSERT_TRUE(SetFailpoints("").ok()); }

  // All servers get the version, or the test fails.
  void Update(LearnerEnd& learner, uint64_t epoch, const std::vector<RolloutEnd*>& servers) {
    ++version_;
    const std::vector<float> arena = RandomArena(config_, version_);
    std::vector<std::string> addresses;
    for (const RolloutEnd* server : servers) addresses.push_back(server->address());
    const auto report = learner->Publish(epoch, version_, arena.data(), addresses);
    ASSERT_TRUE(report.ok()) << report.status();
    for (size_t i = 0; i < servers.size(); ++i) {
      ASSERT_TRUE(report->servers[i].status.ok()) << report->servers[i].status;
      const std::shared_ptr<const Weights> weights = servers[i]->weights();
      ASSERT_NE(weights, nullptr);
      EXPECT_EQ(weights->version, version_);
      EXPECT_EQ(WeightsDigest(*weights), ExpectedDigest(config_, DType::kF16, arena));
      EXPECT_EQ(servers[i]->emulated().kept(), learner.emulated().kept());
    }
    EXPECT_NE(learner.emulated().kept(), "");
  }

  const ModelConfig config_ = SmallModel();
  uint64_t version_ = 0;
};

TEST_P(KeptGroupTest, TheGroupServesEveryUpdateOfTheSameMembers) {
  RolloutEnd a(config_), b(config_);
  LearnerEnd learner(config_);
  Update(learner, 1, {&a, &b});
  const std::string group = learner.emulated().kept();
  for (int i = 0; i < 3; ++i) {
    Update(learner, 1, {&a, &b});
    EXPECT_EQ(learner.emulated().kept(), group);
  }
  if (TestTransportName() == "nccl") {
    for (EmulatedEnd* end : {&a.emulated(), &b.emulated(), &learner.emulated()}) {
      EXPECT_EQ(end->faults->inits, 1);
      EXPECT_EQ(end->faults->aborts, 0);
    }
  }
}

TEST_P(KeptGroupTest, AServerThatWasStartedAgainAtTheSameAddressIsNotTakenForTheOldOne) {
  RolloutEnd a(config_);
  auto b = std::make_unique<RolloutEnd>(config_);
  LearnerEnd learner(config_);
  Update(learner, 1, {&a, b.get()});
  const std::string group = learner.emulated().kept();
  const int port = b->port();
  b.reset();
  b = std::make_unique<RolloutEnd>(config_, DType::kF16, port);
  Update(learner, 1, {&a, b.get()});
  EXPECT_NE(learner.emulated().kept(), group);
}

TEST_P(KeptGroupTest, ALearnerThatWasStartedAgainFormsAGroupOfItsOwn) {
  RolloutEnd a(config_), b(config_);
  auto learner = std::make_unique<LearnerEnd>(config_);
  Update(*learner, 1, {&a, &b});
  const std::string group = learner->emulated().kept();
  learner = std::make_unique<LearnerEnd>(config_);
  Update(*learner, 2, {&a, &b});
  EXPECT_NE(learner->emulated().kept(), group);
}

TEST_P(KeptGroupTest, OneThatLeavesAndOneThatJoinsMakeAnotherGroup) {
  RolloutEnd a(config_), b(config_), c(config_);
  LearnerEnd learner(config_);
  std::vector<std::string> groups;
  for (const std::vector<RolloutEnd*>& servers :
       std::vector<std::vector<RolloutEnd*>>{{&a, &b}, {&a}, {&a, &b, &c}, {&b, &a, &c}, {&b, &c}}) {
    Update(learner, 1, servers);
    groups.push_back(learner.emulated().kept());
  }
  std::sort(groups.begin(), groups.end());
  EXPECT_EQ(std::unique(groups.begin(), groups.end()), groups.end()) << "one was used for two sets of members";
}

TEST_P(KeptGroupTest, AnUpdateThatFailedLeavesNoGroupAndTheNextOneFormsIt) {
  RolloutEnd a(config_), b(config_);
  LearnerEnd learner(config_);
  Update(learner, 1, {&a, &b});
  const std::string group = learner.emulated().kept();
  ASSERT_TRUE(SetFailpoints("transport.skip_send:2").ok());  // the first attempt ends by a bucket's deadline
  Update(learner, 1, {&a, &b});
  EXPECT_EQ(FailpointFired("transport.skip_send"), 1u);
  EXPECT_NE(learner.emulated().kept(), group);
}

TEST_P(KeptGroupTest, AnErrorThatComesBetweenUpdatesCostsNoAttempt) {
  if (TestTransportName() != "nccl") return;  // IPC has nothing between updates that could fail
  for (const bool at_learner : {false, true}) {
    RolloutEnd a(config_), b(config_);
    LearnerEnd learner(config_);
    Update(learner, 1, {&a, &b});
    (at_learner ? learner.emulated() : b.emulated()).faults->break_idle = true;
    Update(learner, 1, {&a, &b});
    EXPECT_FALSE((at_learner ? learner.emulated() : b.emulated()).faults->break_idle);
    for (EmulatedEnd* end : {&a.emulated(), &b.emulated(), &learner.emulated()}) EXPECT_EQ(end->faults->inits, 2);
  }
}

TEST_P(KeptGroupTest, AnErrorInTheMiddleOfAKeptGroupIsRetriedInANewOne) {
  if (TestTransportName() != "nccl") return;
  RolloutEnd a(config_), b(config_);
  LearnerEnd learner(config_);
  Update(learner, 1, {&a, &b});
  // Operations are counted by communicator: the second update's third bucket in the kept one.
  const int buckets = static_cast<int>(MakeBucketPlan(ParamLayout(config_), DType::kF16, 64 << 10)->buckets.size());
  b.emulated().faults->error_in_operation = buckets + 3;
  Update(learner, 1, {&a, &b});
  EXPECT_EQ(learner.emulated().faults->inits, 2);
}

INSTANTIATE_TEST_SUITE_P(Transport, KeptGroupTest, ::testing::Values("nccl", "ipc", "nccl_device", "ipc_device"),
                         [](const auto& info) { return info.param; });

// Of both transports, with weights on the device.
class OnDeviceTest : public KeptGroupTest {};

TEST_P(OnDeviceTest, TheValuesAreNeverAskedForOnTheHostAndTheImageIsUsedAgain) {
  RolloutEnd a(config_);
  LearnerEnd learner(config_);
  const auto device = learner.emulated().device();
  Update(learner, 1, {&a});
  for (int i = 0; i < 3; ++i) Update(learner, 1, {&a});
  EXPECT_EQ(learner.asked_of_host(), 0);
  EXPECT_NE(dynamic_cast<const ImageWeights*>(a.set().get()), nullptr);
  EXPECT_EQ(device->images.num_free(), 0u);  // the one that there is holds the last version
  EXPECT_EQ(device->images.num_made(), 1u);
  // Nothing went through a slot or a staging bucket.
  EXPECT_LE(device->staging.num_made(), 1u);  // the list of digests
}

TEST_P(OnDeviceTest, WhatAServerHasOpenedStaysOpenUntilTheLearnerIsAnother) {
  if (TestTransportName() != "ipc") return;
  RolloutEnd a(config_);
  auto learner = std::make_unique<LearnerEnd>(config_);
  for (int i = 0; i < 3; ++i) Update(*learner, 1, {&a});
  EXPECT_EQ(a.emulated().device()->opened.num_opened(), 1u);
  learner = std::make_unique<LearnerEnd>(config_);
  for (int i = 0; i < 2; ++i) Update(*learner, 2, {&a});
  EXPECT_EQ(a.emulated().device()->opened.num_opened(), 2u);
}

TEST_P(OnDeviceTest, ASlowReaderKeepsItsVersionAndTheNextOneTakesASecondImage) {
  LearnerEnd learner(config_, DType::kF16, 1 << 20);
  const std::vector<float> first = RandomArena(config_, 1), second = RandomArena(config_, 2);
  ASSERT_TRUE(learner->Publish(1, 1, first.data(), {}).ok());
  const auto stub = v1::WeightSource::NewStub(MakeChannel(learner.address()));
  grpc::ClientContext context;
  SetDeadline(context, 20);
  v1::FetchRequest request;
  request.set_epoch(1);
  request.set_version(1);
  request.set_dtype("fp16");
  const auto reader = stub->Fetch(&context, request);
  v1::FetchedBucket message;
  ASSERT_TRUE(reader->Read(&message));  // the manifest
  for (uint64_t version : {2, 3}) ASSERT_TRUE(learner->Publish(1, version, second.data(), {}).ok());
  const absl::StatusOr<BucketPlan> plan = MakeBucketPlan(ParamLayout(config_), DType::kF16, 1 << 20);
  ASSERT_TRUE(plan.ok());
  std::string image;
  while (reader->Read(&message)) image += message.data();
  ASSERT_TRUE(reader->Finish().ok());
  std::string expected(plan->total_bytes, '\0');
  for (const Bucket& bucket : plan->buckets) RoundBucket(*plan, bucket, first.data(), &expected[bucket.begin]);
  EXPECT_TRUE(image == expected);
  EXPECT_LE(learner.emulated().device()->images.num_made(), 2u);
  EXPECT_EQ(learner.asked_of_host(), 0);
}

TEST_P(OnDeviceTest, AServerWithoutMemoryForAShadowVotesAgainstInOneLine) {
  RolloutEnd a(config_), full(config_);
  full.SetNoMemory(true);
  LearnerEnd learner(config_);
  const std::vector<float> arena = RandomArena(config_, 1);
  const auto report = learner->Publish(1, 1, arena.data(), {a.address(), full.address()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->servers[0].status.ok());
  EXPECT_NE(report->servers[1].status.message().find("no memory for a second set"), absl::string_view::npos)
      << report->servers[1].status;
  EXPECT_EQ(report->servers[1].status.message().find('\n'), absl::string_view::npos);
}

INSTANTIATE_TEST_SUITE_P(Transport, OnDeviceTest, ::testing::Values("nccl_device", "ipc_device"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lockstep
