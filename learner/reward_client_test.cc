#include "learner/reward_client.h"

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(30);

// A service in this process that does to each call what the test says.
class FakeService : public v1::RewardService::Service {
 public:
  using Answer =
      std::function<grpc::Status(int call, const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response)>;
  explicit FakeService(Answer answer) : answer_(std::move(answer)) {}

  void Start(int port = 0) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    auto started = StartServer(builder, "127.0.0.1", port);
    ASSERT_TRUE(started.ok()) << started.status();
    listening_ = *std::move(started);
  }
  void Stop() {
    listening_.server->Shutdown(std::chrono::system_clock::now());
    listening_.server.reset();
  }
  ~FakeService() override {
    if (listening_.server != nullptr) Stop();
  }

  grpc::Status GetRewardInfo(grpc::ServerContext*, const v1::RewardInfoRequest*, v1::RewardInfo* info) override {
    info->set_name("fake");
    info->set_max_batch_size(max_batch_size);
    return grpc::Status::OK;
  }
  grpc::Status ScoreSamples(grpc::ServerContext* context, const v1::ScoreSamplesRequest* request,
                            v1::ScoreSamplesResponse* response) override {
    largest = std::max<int>(largest, request->samples_size());
    const grpc::Status status = answer_(calls++, *request, response);
    while (hang && !context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return status;
  }

  const std::string& address() const { return listening_.address; }
  int port() const { return listening_.port; }
  uint32_t max_batch_size = 0;
  std::atomic<int> calls = 0, largest = 0;
  std::atomic<bool> hang = false;

 private:
  Answer answer_;
  ListeningServer listening_;
};

// The length of each response.
grpc::Status Lengths(int, const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response) {
  for (const v1::RewardSample& sample : request.samples()) {
    v1::SampleReward* reward = response->add_rewards();
    reward->set_sample_id(sample.sample_id());
    reward->set_reward(static_cast<double>(sample.response().size()));
  }
  return grpc::Status::OK;
}

std::vector<v1::RewardSample> Samples(int count, const std::string& prefix = "s") {
  std::vector<v1::RewardSample> samples(count);
  for (int i = 0; i < count; ++i) {
    samples[i].set_sample_id(absl::StrCat(prefix, "/", i));
    samples[i].set_response(std::string(i, 'x'));
  }
  return samples;
}

RewardClientOptions Options(const FakeService& service, absl::Duration timeout = absl::Seconds(10)) {
  return {service.address(), "run", timeout};
}

std::vector<absl::StatusOr<double>> Score(RewardClient& client, int count, const std::string& prefix = "s") {
  client.Submit(7, Samples(count, prefix));
  auto scored = client.Next(kDeadline);
  EXPECT_TRUE(scored.has_value());
  if (!scored) return {};
  EXPECT_EQ(scored->key, 7u);
  EXPECT_EQ(scored->rewards.size(), static_cast<size_t>(count));
  return scored->rewards;
}

TEST(RewardClient, GivesEverySampleItsOwnRewardWhateverTheOrder) {
  FakeService service([](int call, const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response) {
    const grpc::Status status = Lengths(call, request, response);
    std::reverse(response->mutable_rewards()->begin(), response->mutable_rewards()->end());
    return status;
  });
  service.Start();
  RewardClient client(Options(service), nullptr);
  ASSERT_TRUE(client.Connect().ok());
  const auto rewards = Score(client, 5);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(*rewards[i], i);
  EXPECT_EQ(client.pending(), 0u);
  EXPECT_EQ(client.trouble(), "");
}

TEST(RewardClient, KeepsToItsOwnBatchBoundAndToTheServices) {
  for (const uint32_t limit : {0u, 10u, 100000u}) {
    FakeService service(Lengths);
    service.max_batch_size = limit;
    service.Start();
    RewardClient client(Options(service), nullptr);
    ASSERT_TRUE(client.Connect().ok());
    const auto rewards = Score(client, 150);
    for (int i = 0; i < 150; ++i) ASSERT_EQ(*rewards[i], i);
    EXPECT_EQ(service.largest, limit == 10 ? 10 : static_cast<int>(kMaxRewardBatch));
    EXPECT_EQ(service.calls, limit == 10 ? 15 : 3);
  }
}

TEST(RewardClient, NotFiniteMissingAndRefusedRewardsAreErrorsOfTheirSamplesAlone) {
  FakeService service([](int, const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response) {
    const double rewards[] = {0.5, std::nan(""), std::numeric_limits<double>::infinity(), 0};
    for (int i = 0; i < 6; ++i) {
      if (i == 3) continue;  // left out
      v1::SampleReward* reward = response->add_rewards();
      reward->set_sample_id(request.samples(i).sample_id());
      if (i < 3) reward->set_reward(rewards[i]);
      if (i == 4) reward->set_error("no tests in the problem");
    }
    response->add_rewards()->set_sample_id("nobody asked");
    return grpc::Status::OK;
  });
  service.Start();
  MetricsRegistry metrics("learner");
  RewardClient client(Options(service), &metrics);
  ASSERT_TRUE(client.Connect().ok());
  const auto rewards = Score(client, 6);
  EXPECT_EQ(*rewards[0], 0.5);
  EXPECT_EQ(rewards[1].status().message(), "the reward service sent nan");
  EXPECT_EQ(rewards[2].status().message(), "the reward service sent inf");
  EXPECT_EQ(rewards[3].status().message(), "the reward service left it out");
  EXPECT_EQ(rewards[4].status().message(), "the reward service: no tests in the problem");
  EXPECT_EQ(rewards[5].status().message(), "the reward service sent neither reward nor error");
}

TEST(RewardClient, AFailedCallIsNotRepeatedUnlessTheServiceWasAway) {
  FakeService service([](int call, const v1::ScoreSamplesRequest& request, v1::ScoreSamplesResponse* response) {
    if (call < 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting");
    if (call == 3) return grpc::Status(grpc::StatusCode::INTERNAL, "bug");
    return Lengths(call, request, response);
  });
  service.Start();
  RewardClient client(Options(service), nullptr);
  ASSERT_TRUE(client.Connect().ok());
  EXPECT_EQ(*Score(client, 2)[1], 1);
  EXPECT_EQ(service.calls, 3);
  EXPECT_EQ(client.trouble(), "");
  EXPECT_EQ(Score(client, 1)[0].status().message(), absl::StrCat("the reward service ", service.address(), ": bug"));
  EXPECT_EQ(service.calls, 4);
}

TEST(RewardClient, ASlowServiceEndsAtTheDeadline) {
  FakeService service(Lengths);
  service.hang = true;
  service.Start();
  RewardClient client(Options(service, absl::Milliseconds(300)), nullptr);
  ASSERT_TRUE(client.Connect().ok());
  const absl::Time start = absl::Now();
  EXPECT_EQ(Score(client, 1)[0].status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_EQ(service.calls, 1);
}

TEST(RewardClient, AServiceThatIsGoneAndBackLosesNoSample) {
  FakeService first(Lengths);
  first.Start();
  const int port = first.port();
  RewardClient client(Options(first, absl::Seconds(60)), nullptr);
  ASSERT_TRUE(client.Connect().ok());
  EXPECT_EQ(*Score(client, 2)[1], 1);
  first.Stop();
  client.Submit(8, Samples(3));
  EXPECT_FALSE(client.Next(absl::Milliseconds(300)).has_value());
  EXPECT_NE(client.trouble().find("is away since"), std::string::npos) << client.trouble();
  EXPECT_NE(client.trouble().find("samples wait"), std::string::npos) << client.trouble();
  FakeService second(Lengths);
  second.Start(port);
  const auto scored = client.Next(kDeadline);
  ASSERT_TRUE(scored.has_value());
  EXPECT_EQ(scored->key, 8u);
  EXPECT_EQ(*scored->rewards[2], 2);
  EXPECT_EQ(client.trouble(), "");
}

TEST(RewardClient, AnOutageCostsItsTimeoutOnceAndThenDropsAtOnce) {
  FakeService service(Lengths);
  service.Start();
  RewardClient client(Options(service, absl::Seconds(1)), nullptr);
  ASSERT_TRUE(client.Connect().ok());
  service.Stop();
  const absl::Time start = absl::Now();
  for (int i = 0; i < 20; ++i) client.Submit(i, Samples(1));
  for (int i = 0; i < 20; ++i) {
    const auto scored = client.Next(kDeadline);
    ASSERT_TRUE(scored.has_value());
    EXPECT_EQ(scored->rewards[0].status().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_GE(absl::Now() - start, absl::Seconds(1));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_NE(client.trouble().find("are dropped"), std::string::npos) << client.trouble();
}

TEST(RewardClient, EndsAtOnceWhileAServiceHangs) {
  FakeService service(Lengths);
  service.hang = true;
  service.Start();
  const absl::Time start = absl::Now();
  {
    RewardClient client(Options(service, absl::Seconds(300)), nullptr);
    ASSERT_TRUE(client.Connect().ok());
    for (int i = 0; i < 10; ++i) client.Submit(i, Samples(1));
    while (service.calls == 0) absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
}

TEST(RewardClient, AnAddressWithoutServiceIsNamed) {
  RewardClient client({"127.0.0.1:1", "run", absl::Milliseconds(300)}, nullptr);
  const absl::Status status = client.Connect();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("data.reward_address: the reward service 127.0.0.1:1 does not answer"),
            std::string::npos)
      << status;
}

}  // namespace
}  // namespace lockstep
