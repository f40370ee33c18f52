// Publisher and receivers in one process, over real gRPC, and over Gloo on loopback as well as the transports of GPUs
// on the emulated device.
#include "weight_sync/publisher.h"

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "weight_sync/failpoints.h"
#include "weight_sync/sync_test_support.h"

namespace lockstep {
namespace {

class WeightSyncTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    TestTransport() = GetParam();
    ASSERT_TRUE(SetFailpoints("").ok());
  }
  void TearDown() override { ASSERT_TRUE(SetFailpoints("").ok()); }

  void ExpectHolds(const RolloutEnd& server, uint64_t epoch, uint64_t version, const std::vector<float>& arena) {
    const std::shared_ptr<const Weights> weights = server.weights();
    ASSERT_NE(weights, nullptr) << server.address();
    EXPECT_EQ(weights->epoch, epoch);
    EXPECT_EQ(weights->version, version);
    EXPECT_EQ(WeightsDigest(*weights), ExpectedDigest(config_, weights->dtype, arena));
  }
  double Metric(MetricsRegistry& metrics, const std::string& series) {
    const std::string text = "\n" + metrics.Scrape();
    const size_t at = text.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
  }

  const ModelConfig config_ = SmallModel();
  const std::vector<float> first_ = RandomArena(config_, 1);
  const std::vector<float> second_ = RandomArena(config_, 2);
};

TEST_P(WeightSyncTest, EveryServerHoldsTheSameBitsAsAConversionOfTheArena) {
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    RolloutEnd a(config_, dtype), b(config_, dtype), c(config_, dtype);
    LearnerEnd learner(config_, dtype);
    const auto report = learner->Publish(1, 5, first_.data(), {a.address(), b.address(), c.address()});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->version, 5u);
    EXPECT_EQ(report->bytes, first_.size() * DTypeSize(dtype));
    ASSERT_EQ(report->servers.size(), 3u);
    for (const ServerUpdate& server : report->servers) {
      EXPECT_TRUE(server.status.ok()) << server.status;
      EXPECT_EQ(server.pause_seconds, 0.001);
    }
    for (const RolloutEnd* server : {&a, &b, &c}) ExpectHolds(*server, 1, 5, first_);
    EXPECT_EQ(a.in_flight(), "finish");
    const auto next = learner->Publish(1, 6, second_.data(), {a.address(), b.address(), c.address()});
    ASSERT_TRUE(next.ok()) << next.status();
    for (const RolloutEnd* server : {&a, &b, &c}) ExpectHolds(*server, 1, 6, second_);
    // Bytes sent = bytes received, on the scraped metrics.
    EXPECT_EQ(Metric(learner.metrics(), "rl_weight_sync_bytes_total"),
              3 * Metric(a.metrics(), "rl_weight_sync_bytes_total"));
    EXPECT_EQ(Metric(a.metrics(), "rl_weight_sync_version"), 6);
    EXPECT_EQ(Metric(a.metrics(), "rl_weight_sync_updates_total{outcome=\"committed\"}"), 2);
    EXPECT_EQ(Metric(learner.metrics(), "rl_weight_sync_updates_total{outcome=\"committed\"}"), 2);
  }
}

TEST_P(WeightSyncTest, AnUpdateWithoutServersIsKeptForThoseThatCome) {
  LearnerEnd learner(config_);
  ASSERT_TRUE(learner->Publish(1, 1, first_.data(), {}).ok());
  RolloutEnd late(config_);
  const absl::Status status = learner->CatchUp(late.address());
  ASSERT_TRUE(status.ok()) << status;
  ExpectHolds(late, 1, 1, first_);
  // Once more is no change.
  ASSERT_TRUE(learner->CatchUp(late.address()).ok());
  ASSERT_TRUE(learner->Publish(1, 2, second_.data(), {late.address()}).ok());
  ExpectHolds(late, 1, 2, second_);
}

TEST_P(WeightSyncTest, ADeadServerIsReportedAndTheOthersGetTheVersion) {
  RolloutEnd alive(config_);
  std::string dead_address;
  {
    RolloutEnd dead(config_);
    dead_address = dead.address();
  }
  LearnerEnd learner(config_);
  const auto report = learner->Publish(1, 1, first_.data(), {dead_address, alive.address()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->servers[0].status.code(), absl::StatusCode::kUnavailable) << report->servers[0].status;
  EXPECT_TRUE(report->servers[1].status.ok());
  ExpectHolds(alive, 1, 1, first_);
  EXPECT_EQ(learner->Publish(1, 2, first_.data(), {dead_address}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(learner->CatchUp(dead_address).code(), absl::StatusCode::kUnavailable);
}

TEST_P(WeightSyncTest, AServerThatComesBackWithBaseWeightsCatchesUp) {
  LearnerEnd learner(config_);
  auto server = std::make_unique<RolloutEnd>(config_);
  ASSERT_TRUE(learner->Publish(1, 1, first_.data(), {server->address()}).ok());
  server = std::make_unique<RolloutEnd>(config_);
  EXPECT_EQ(server->weights(), nullptr);
  ASSERT_TRUE(learner->CatchUp(server->address()).ok());
  ExpectHolds(*server, 1, 1, first_);
}

TEST_P(WeightSyncTest, ACorruptedBucketIsNotCommittedAndTheRetryIs) {
  RolloutEnd a(config_), b(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(SetFailpoints("transport.corrupt_bucket:3").ok());
  const auto report = learner->Publish(1, 1, first_.data(), {a.address(), b.address()});
  EXPECT_EQ(FailpointFired("transport.corrupt_bucket"), 1u);
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectHolds(a, 1, 1, first_);
  ExpectHolds(b, 1, 1, first_);
  EXPECT_EQ(Metric(learner.metrics(), "rl_weight_sync_digest_mismatches_total"), 1);
  EXPECT_EQ(Metric(a.metrics(), "rl_weight_sync_updates_total{outcome=\"digest\"}") +
                Metric(b.metrics(), "rl_weight_sync_updates_total{outcome=\"digest\"}"),
            1);
}

TEST_P(WeightSyncTest, AServerWhoseBytesAlwaysDifferIsQuarantinedUntilItCatchesUp) {
  RolloutEnd server(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(learner->Publish(1, 1, first_.data(), {server.address()}).ok());
  ASSERT_TRUE(SetFailpoints("transport.corrupt_bucket:0").ok());
  EXPECT_EQ(learner->Publish(1, 2, second_.data(), {server.address()}).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_GE(FailpointFired("transport.corrupt_bucket"), 2u);
  ASSERT_TRUE(SetFailpoints("").ok());
  ExpectHolds(server, 1, 1, first_);
  const auto refused = learner->Publish(1, 3, second_.data(), {server.address()});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(refused.status().message().find("quarantined"), absl::string_view::npos);
  ExpectHolds(server, 1, 1, first_);
  ASSERT_TRUE(learner->CatchUp(server.address()).ok());
  ExpectHolds(server, 1, 3, second_);
  ASSERT_TRUE(learner->Publish(1, 4, first_.data(), {server.address()}).ok());
  ExpectHolds(server, 1, 4, first_);
}

TEST_P(WeightSyncTest, AReceiveThatMovedNothingIsFoundByItsDigest) {
  RolloutEnd server(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(SetFailpoints("receiver.misplace_bucket:4").ok());
  const auto report = learner->Publish(1, 1, first_.data(), {server.address()});
  EXPECT_EQ(FailpointFired("receiver.misplace_bucket"), 1u);
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectHolds(server, 1, 1, first_);
  EXPECT_EQ(Metric(server.metrics(), "rl_weight_sync_digest_mismatches_total"), 1);
}

TEST_P(WeightSyncTest, ASendThatMovedNothingEndsByTheBucketsDeadlineAndIsRetried) {
  RolloutEnd a(config_), b(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(SetFailpoints("transport.skip_send:2").ok());
  const absl::Time begun = absl::Now();
  const auto report = learner->Publish(1, 1, first_.data(), {a.address(), b.address()});
  EXPECT_EQ(FailpointFired("transport.skip_send"), 1u);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(absl::Now() - begun, absl::Seconds(10));
  ExpectHolds(a, 1, 1, first_);
  ExpectHolds(b, 1, 1, first_);
}

TEST_P(WeightSyncTest, ALostCommitAnswerIsAskedForAgain) {
  RolloutEnd server(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(SetFailpoints("receiver.lose_commit_answer:1").ok());
  const auto report = learner->Publish(1, 1, first_.data(), {server.address()});
  EXPECT_EQ(FailpointFired("receiver.lose_commit_answer"), 1u);
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectHolds(server, 1, 1, first_);
}

TEST_P(WeightSyncTest, AFlipThatFailsKeepsTheOldVersionAndSaysWhy) {
  RolloutEnd server(config_);
  LearnerEnd learner(config_);
  ASSERT_TRUE(learner->Publish(1, 1, first_.data(), {server.address()}).ok());
  server.FailNextFlip(absl::InternalError("the decode loop did not answer"));
  const auto report = learner->Publish(1, 2, second_.data(), {server.address()});
  EXPECT_NE(report.status().message().find("the decode loop did not answer"), absl::string_view::npos)
      << report.status();
  ExpectHolds(server, 1, 1, first_);
  ASSERT_TRUE(learner->CatchUp(server.address()).ok());
  ExpectHolds(server, 1, 2, second_);
}

TEST_P(WeightSyncTest, OfTwoLearnersTheHigherEpochWinsAndTheOlderIsTold) {
  RolloutEnd server(config_);
  LearnerEnd old_learner(config_), new_learner(config_);
  ASSERT_TRUE(old_learner->Publish(1, 9, first_.data(), {server.address()}).ok());
  // A restarted learner may go back in versions, with a higher epoch.
  ASSERT_TRUE(new_learner->Publish(2, 7, second_.data(), {server.address()}).ok());
  const auto refused = old_learner->Publish(1, 10, first_.data(), {server.address()});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.status().message().find("epoch 1, version 10"), absl::string_view::npos) << refused.status();
  EXPECT_NE(refused.status().message().find("epoch 2, version 7"), absl::string_view::npos) << refused.status();
  EXPECT_EQ(old_learner->CatchUp(server.address()).code(), absl::StatusCode::kFailedPrecondition);
  ExpectHolds(server, 2, 7, second_);
  EXPECT_GE(Metric(server.metrics(), "rl_weight_sync_updates_total{outcome=\"refused_epoch\"}"), 1);
  // The same learner does not go back.
  EXPECT_EQ(new_learner->Publish(2, 6, second_.data(), {server.address()}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_P(WeightSyncTest, AServerWithAnotherShapeOrDtypeRefusesInOneLine) {
  ModelConfig wider = config_;
  wider.intermediate_size += 8;
  RolloutEnd good(config_), other_shape(wider), other_dtype(config_, DType::kBF16);
  LearnerEnd learner(config_);
  const auto report =
      learner->Publish(1, 1, first_.data(), {good.address(), other_shape.address(), other_dtype.address()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->servers[0].status.ok());
  for (const int i : {1, 2}) {
    const absl::Status& status = report->servers[static_cast<size_t>(i)].status;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
  }
  EXPECT_NE(report->servers[1].status.message().find("the shape of layers.0.gate_up is [400, 96]"),
            absl::string_view::npos)
      << report->servers[1].status;
  EXPECT_NE(report->servers[2].status.message().find("the dtype of embed is fp16, this server has bf16"),
            absl::string_view::npos)
      << report->servers[2].status;
  EXPECT_FALSE(learner->CatchUp(other_dtype.address()).ok());
  EXPECT_FALSE(learner->CatchUp(other_shape.address()).ok());
  EXPECT_EQ(other_dtype.weights(), nullptr);
  EXPECT_EQ(other_shape.weights(), nullptr);
}

TEST_P(WeightSyncTest, CallsThatBelongToNoUpdateAreRefused) {
  RolloutEnd server(config_);
  const auto stub = v1::WeightReceiver::NewStub(MakeChannel(server.address()));
  {
    grpc::ClientContext context;
    SetDeadline(context, 5);
    v1::CommitUpdate request;
    request.set_epoch(1);
    request.set_version(1);
    v1::Committed response;
    EXPECT_EQ(stub->Commit(&context, request, &response).error_code(), grpc::StatusCode::ABORTED);
  }
  {
    grpc::ClientContext context;
    SetDeadline(context, 5);
    v1::ReceiveBuckets request;
    request.set_epoch(1);
    request.set_version(1);
    v1::Received response;
    EXPECT_EQ(stub->Receive(&context, request, &response).error_code(), grpc::StatusCode::ABORTED);
  }
  {
    grpc::ClientContext context;
    SetDeadline(context, 5);
    v1::BeginUpdate request;  // a manifest of nothing
    request.set_epoch(1);
    request.set_version(1);
    request.set_attempt(1);
    request.set_timeout_ms(1000);
    request.set_transport("gloo");
    v1::Vote vote;
    ASSERT_TRUE(stub->Begin(&context, request, &vote).ok());
    EXPECT_FALSE(vote.ready());
    EXPECT_NE(vote.reason().find("number of tensors"), std::string::npos) << vote.reason();
  }
  EXPECT_EQ(server.weights(), nullptr);
}

TEST_P(WeightSyncTest, ATransportThatOneEndLacksIsRefusedWithTheNamesOfThoseItHas) {
  WeightReceiverOptions options;
  options.config = config_;
  const auto service = MakeWeightReceiver(
      options, [](std::shared_ptr<const WeightSet>, const std::string&) -> absl::StatusOr<double> { return 0.0; });
  grpc::ServerBuilder builder;
  builder.RegisterService(service.get());
  absl::StatusOr<ListeningServer> listening = StartServer(builder, "127.0.0.1", 0);
  ASSERT_TRUE(listening.ok());
  LearnerEnd learner(config_);
  const absl::Status status = learner->Publish(1, 1, first_.data(), {listening->address}).status();
  if (GetParam() == "gloo") {
    EXPECT_TRUE(status.ok()) << status;
  } else {
    EXPECT_NE(
        status.message().find(absl::StrCat("transport \"", TestTransportName(), "\" refused: this server has gloo")),
        absl::string_view::npos)
        << status;
  }
  WeightPublisherOptions mistaken;
  mistaken.config = config_;
  mistaken.sync.set_transport("carrier pigeon");
  mistaken.sync.set_timeout_seconds(5);
  const absl::Status refused = MakeWeightPublisher(mistaken)->Publish(1, 1, first_.data(), {}).status();
  EXPECT_NE(refused.message().find("\"carrier pigeon\" is not in this process; set it to one of gloo"),
            absl::string_view::npos)
      << refused;
  listening->server->Shutdown(std::chrono::system_clock::now());
}

TEST_P(WeightSyncTest, ASourceRefusesForeignVersions) {
  LearnerEnd learner(config_);
  ASSERT_TRUE(learner->Publish(1, 1, first_.data(), {}).ok());
  const auto stub = v1::WeightSource::NewStub(MakeChannel(learner.address()));
  grpc::ClientContext context;
  SetDeadline(context, 5);
  v1::FetchRequest request;
  request.set_epoch(1);
  request.set_version(2);
  request.set_dtype("fp16");
  const auto reader = stub->Fetch(&context, request);
  v1::FetchedBucket message;
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

INSTANTIATE_TEST_SUITE_P(Transport, WeightSyncTest,
                         ::testing::Values("gloo", "nccl", "ipc", "nccl_device", "ipc_device"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lockstep
