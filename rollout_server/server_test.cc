// The server as a client sees it: gRPC on loopback.
#include "rollout_server/server.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/model/kv_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rollout_server/cpu_backend.h"
#include "rollout_server/test_support.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using Stream = grpc::ClientReaderWriter<v1::GenerateRequest, v1::GenerateResponse>;

constexpr double kDeadlineSeconds = 60;

bool WaitFor(const std::function<bool()>& condition) {
  const absl::Time deadline = absl::Now() + absl::Seconds(kDeadlineSeconds);
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

std::unique_ptr<StepBackend> TinyBackend(int64_t pages) {
  return MakeCpuBackend(TinyConfig(), DType::kF16, pages, MakeCpuOps(Numerics::kMatched, 1));
}

std::unique_ptr<RolloutServer> StartTinyServer(RolloutServerOptions options = {}, int64_t pages = 500) {
  if (options.limits.max_decode_rows == 1) options.limits = {.max_decode_rows = 16, .prefill_chunk_tokens = 32};
  if (options.max_groups_in_flight == 1) options.max_groups_in_flight = 8;
  auto server = RolloutServer::Start(options, TinyBackend(pages), TinyWeights(1));
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

// One Generate stream and what came back on it.
class Client {
 public:
  explicit Client(const std::string& address) : stub_(v1::Rollout::NewStub(MakeChannel(address))) {
    SetDeadline(context_, kDeadlineSeconds);
    stream_ = stub_->Generate(&context_);
  }

  bool Send(const v1::Group& group) {
    v1::GenerateRequest request;
    *request.mutable_group() = group;
    return stream_->Write(request);
  }
  bool SendCancel(uint64_t group_id, uint32_t attempt) {
    v1::GenerateRequest request;
    request.mutable_cancel()->set_group_id(group_id);
    request.mutable_cancel()->set_attempt(attempt);
    return stream_->Write(request);
  }
  bool ReadOne() {
    v1::GenerateResponse response;
    if (!stream_->Read(&response)) return false;
    samples.Add(response);
    return true;
  }
  // Reads until the condition holds or the stream ends.
  bool ReadUntil(const std::function<bool()>& condition) {
    while (!condition()) {
      if (!ReadOne()) return false;
    }
    return true;
  }
  // Half-closes, reads the rest, and gives the stream's status.
  grpc::Status End() {
    stream_->WritesDone();
    while (ReadOne()) {
    }
    return stream_->Finish();
  }
  void TryCancel() { context_.TryCancel(); }
  v1::Rollout::Stub& stub() { return *stub_; }

  Samples samples;

 private:
  std::unique_ptr<v1::Rollout::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<Stream> stream_;
};

v1::ServerInfo Info(v1::Rollout::Stub& stub) {
  grpc::ClientContext context;
  SetDeadline(context, kDeadlineSeconds);
  v1::ServerInfo info;
  const grpc::Status status = stub.GetServerInfo(&context, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return info;
}

v1::ServerInfo Info(const std::string& address) {
  auto stub = v1::Rollout::NewStub(MakeChannel(address));
  return Info(*stub);
}

TEST(ServerTest, StreamsGroupsAndEndsWhenTheClientHasNoMore) {
  auto server = StartTinyServer();
  Client client(server->address());
  ASSERT_TRUE(client.ReadUntil([&] { return client.samples.credits() == 8; }));
  for (uint64_t g = 1; g <= 4; ++g) ASSERT_TRUE(client.Send(TinyGroup(g, 20, 3, 40)));
  EXPECT_TRUE(client.End().ok());
  EXPECT_EQ(client.samples.finished(), 12u);
  EXPECT_EQ(client.samples.credits(), 12u);
  for (const auto& [id, sample] : client.samples.all()) EXPECT_EQ(sample.tokens.size(), 40u);
}

TEST(ServerTest, TwoServersAndTwoStreamsGiveTheSameSamples) {
  auto one = StartTinyServer();
  RolloutServerOptions small;
  small.limits = {.max_decode_rows = 3, .prefill_chunk_tokens = 7};
  auto two = StartTinyServer(small, 10);
  Client a(one->address()), b(two->address()), c(two->address());
  for (uint64_t g = 1; g <= 6; ++g) {
    ASSERT_TRUE(a.Send(TinyGroup(g, 30, 3, 40)));
    v1::Group other = TinyGroup(g, 30, 3, 40);
    ASSERT_TRUE((g % 2 == 0 ? b : c).Send(other));
  }
  ASSERT_TRUE(a.End().ok());
  ASSERT_TRUE(b.End().ok());
  ASSERT_TRUE(c.End().ok());
  for (const auto& [id, sample] : a.samples.all()) {
    const Samples& other = id.first % 2 == 0 ? b.samples : c.samples;
    EXPECT_TRUE(sample.SameDraws(other.at(id.first, id.second))) << id.first << " " << id.second;
  }
}

TEST(ServerTest, AGroupWithoutACreditIsRefused) {
  RolloutServerOptions options;
  options.max_groups_in_flight = 2;
  auto server = StartTinyServer(options);
  Client client(server->address());
  for (uint64_t g = 1; g <= 3; ++g) ASSERT_TRUE(client.Send(TinyGroup(g, 20, 2, 900)));
  ASSERT_TRUE(client.ReadUntil([&] { return !client.samples.refused().empty(); }));
  EXPECT_EQ(client.samples.refused()[0].group_id(), 3u);
  EXPECT_EQ(client.samples.refused()[0].reason(), v1::GroupRefused::REASON_EXHAUSTED);
  EXPECT_THAT(client.samples.refused()[0].message(), HasSubstr("without a credit"));
  EXPECT_EQ(client.samples.credits(), 2u) << "a refusal for want of a credit gives none back";
  ASSERT_TRUE(client.SendCancel(1, 1));
  ASSERT_TRUE(client.ReadUntil([&] { return client.samples.credits() == 3; }));
  ASSERT_TRUE(client.Send(TinyGroup(4, 20, 2, 3)));
  ASSERT_TRUE(client.SendCancel(2, 1));
  EXPECT_TRUE(client.End().ok());
  EXPECT_EQ(client.samples.at(4, 1).finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST(ServerTest, ACancelledStreamFreesItsPages) {
  auto server = StartTinyServer();
  Client client(server->address());
  ASSERT_TRUE(client.Send(TinyGroup(1, 100, 8, 900)));
  ASSERT_TRUE(client.ReadUntil([&] { return client.samples.size() > 0; }));
  EXPECT_GT(Info(server->address()).kv_cache_blocks_used(), 0u);
  client.TryCancel();
  EXPECT_TRUE(WaitFor([&] { return Info(client.stub()).kv_cache_blocks_used() == 0; }));
  EXPECT_TRUE(WaitFor([&] { return Info(client.stub()).running_samples() == 0; }));
}

TEST(ServerTest, InvalidGroupsAreRefusedWithTheirReasonAndOthersGoOn) {
  RolloutServerOptions options;
  auto server = StartTinyServer(options, 20);
  Client client(server->address());
  v1::Group many = TinyGroup(1, 5, 1'000'000'000, 5);
  v1::Group token = TinyGroup(2, 5, 1, 5);
  token.set_prompt_token_ids(0, 97);
  v1::Group longer = TinyGroup(3, 400, 1, 5);
  v1::Group newer = TinyGroup(4, 5, 1, 5);
  newer.set_min_weight_version(7);
  for (const v1::Group& group : {many, token, longer, newer, TinyGroup(5, 5, 1, 5)}) ASSERT_TRUE(client.Send(group));
  EXPECT_TRUE(client.End().ok());
  ASSERT_EQ(client.samples.refused().size(), 4u);
  for (const v1::GroupRefused& refused : client.samples.refused()) {
    const v1::GroupRefused::Reason expected = refused.group_id() == 3   ? v1::GroupRefused::REASON_EXHAUSTED
                                              : refused.group_id() == 4 ? v1::GroupRefused::REASON_NOT_READY
                                                                        : v1::GroupRefused::REASON_INVALID;
    EXPECT_EQ(refused.reason(), expected) << refused.message();
  }
  EXPECT_EQ(client.samples.credits(), 8u + 5u);
  EXPECT_EQ(client.samples.at(5, 0).finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST(ServerTest, AnEmptyRequestIsRefused) {
  auto server = StartTinyServer();
  auto stub = v1::Rollout::NewStub(MakeChannel(server->address()));
  grpc::ClientContext context;
  SetDeadline(context, kDeadlineSeconds);
  auto stream = stub->Generate(&context);
  ASSERT_TRUE(stream->Write(v1::GenerateRequest()));
  stream->WritesDone();
  v1::GenerateResponse response;
  bool refused = false;
  while (stream->Read(&response)) refused |= response.has_refused();
  EXPECT_TRUE(refused);
  EXPECT_TRUE(stream->Finish().ok());
}

TEST(ServerTest, ASlowReaderHoldsBoundedMemoryAndDelaysNobodyElse) {
  RolloutServerOptions options;
  options.limits = {.max_decode_rows = 64, .prefill_chunk_tokens = 64};
  options.max_groups_in_flight = 16;
  auto server = StartTinyServer(options, 20'000);
  Client slow(server->address());
  // 16 groups of 128 samples of 300 tokens: 600,000 tokens, far above what a stream may queue.
  for (uint64_t g = 1; g <= 16; ++g) ASSERT_TRUE(slow.Send(TinyGroup(g, 4, 128, 300)));
  // The engine stops decoding for the slow reader: the token count stands still while samples are unfinished.
  uint64_t last = 0;
  int still = 0;
  ASSERT_TRUE(WaitFor([&] {
    const v1::ServerInfo info = Info(slow.stub());
    still = info.generated_tokens_total() == last && last > 0 ? still + 1 : 0;
    last = info.generated_tokens_total();
    return still >= 50;
  }));
  EXPECT_LT(last, 16u * 128 * 300);
  Client quick(server->address());
  ASSERT_TRUE(quick.Send(TinyGroup(100, 10, 2, 30)));
  EXPECT_TRUE(quick.End().ok());
  EXPECT_EQ(quick.samples.finished(), 2u);
  slow.TryCancel();
  EXPECT_TRUE(WaitFor([&] { return Info(slow.stub()).kv_cache_blocks_used() == 0; }));
}

TEST(ServerTest, CallsWithoutADeadlineAreRefused) {
  auto server = StartTinyServer();
  auto stub = v1::Rollout::NewStub(MakeChannel(server->address()));
  v1::ServerInfo info;
  v1::DrainResponse drained;
  grpc::ClientContext a, b;
  EXPECT_EQ(stub->GetServerInfo(&a, {}, &info).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(stub->Drain(&b, {}, &drained).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_FALSE(Info(server->address()).draining());
}

TEST(ServerTest, InfoSaysWhatTheServerIs) {
  RolloutServerOptions options;
  options.metrics_port = 0;
  auto server = StartTinyServer(options, 30);
  const v1::ServerInfo info = Info(server->address());
  EXPECT_EQ(info.model_hash(), TinyConfig().Hash());
  EXPECT_EQ(info.dtype(), "fp16");
  EXPECT_EQ(info.numerics(), "matched");
  EXPECT_EQ(info.vocab_size(), 97u);
  EXPECT_EQ(info.kv_cache_blocks(), 30u);
  EXPECT_EQ(info.max_sequence_tokens(), 480u);
  EXPECT_EQ(info.metrics_address(), server->metrics_address());
  EXPECT_NE(info.server_id(), Info(StartTinyServer()->address()).server_id());
}

TEST(ServerTest, DrainFinishesWhatIsInFlightAndRefusesTheRest) {
  RolloutServerOptions options;
  bool called = false;
  options.on_drain = [&called] { called = true; };
  auto server = StartTinyServer(options);
  Client client(server->address());
  ASSERT_TRUE(client.Send(TinyGroup(1, 20, 3, 600)));
  ASSERT_TRUE(client.ReadUntil([&] { return client.samples.size() > 0; }));
  grpc::ClientContext context;
  SetDeadline(context, kDeadlineSeconds);
  v1::DrainResponse response;
  ASSERT_TRUE(client.stub().Drain(&context, {}, &response).ok());
  EXPECT_TRUE(called);
  EXPECT_TRUE(Info(server->address()).draining());
  client.Send(TinyGroup(2, 20, 1, 5));
  bool clean = false;
  std::thread drain([&] { clean = server->Drain(absl::Seconds(kDeadlineSeconds)); });
  while (client.ReadOne()) {
  }
  drain.join();
  EXPECT_TRUE(clean);
  EXPECT_EQ(client.samples.finished(), 3u);
  for (uint32_t s = 0; s < 3; ++s) EXPECT_EQ(client.samples.at(1, s).tokens.size(), 600u);
  EXPECT_THAT(server->ScrapeMetrics(), HasSubstr("rl_component_state{state=\"draining\"} 1"));
  Client late(server->address());
  EXPECT_FALSE(late.ReadOne());
  EXPECT_EQ(late.End().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(ServerTest, AStreamStatusAfterDrainIsUnavailable) {
  auto server = StartTinyServer();
  Client idle(server->address());
  ASSERT_TRUE(idle.ReadUntil([&] { return idle.samples.credits() == 8; }));
  EXPECT_TRUE(server->Drain(absl::Seconds(kDeadlineSeconds)));
  EXPECT_FALSE(idle.ReadOne());
  EXPECT_EQ(idle.End().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(ServerTest, WeightsFlipBetweenStepsWhileAStreamRuns) {
  auto server = StartTinyServer();
  Client client(server->address());
  ASSERT_TRUE(client.Send(TinyGroup(1, 20, 2, 900)));
  ASSERT_TRUE(client.ReadUntil([&] { return client.samples.size() > 0; }));
  const auto next = TinyWeights(2, 5);
  const absl::StatusOr<double> pause = server->loop().Flip(next, "continue", absl::Seconds(kDeadlineSeconds));
  ASSERT_TRUE(pause.ok()) << pause.status();
  EXPECT_LT(*pause, 1.0);
  EXPECT_TRUE(client.End().ok());
  std::unique_ptr<Ops> ops = MakeCpuOps(Numerics::kMatched, 1);
  for (uint32_t s = 0; s < 2; ++s) {
    const Received& sample = client.samples.at(1, s);
    EXPECT_EQ(sample.versions.front(), 0u);
    EXPECT_EQ(sample.versions.back(), 5u);
    const std::vector<float> old_bits =
        TrainingLogProbs(*TinyWeights(1), ops.get(), TinyPrompt(1, 20), sample.tokens, 1);
    const std::vector<float> new_bits = TrainingLogProbs(*next, ops.get(), TinyPrompt(1, 20), sample.tokens, 1);
    for (size_t i = 0; i < sample.tokens.size(); ++i) {
      EXPECT_EQ(sample.log_probs[i], sample.versions[i] == 0 ? old_bits[i] : new_bits[i]) << "token " << i;
    }
  }
  EXPECT_EQ(Info(server->address()).weight_version(), 5u);
  EXPECT_EQ(server->loop().Flip(TinyWeights(3, 4), "finish", absl::Seconds(10)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(server->loop().Flip(TinyWeights(3, 6), "sometimes", absl::Seconds(10)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ServerTest, MetricsAddUpWithWhatTheClientGot) {
  auto server = StartTinyServer();
  Client client(server->address());
  for (uint64_t g = 1; g <= 3; ++g) ASSERT_TRUE(client.Send(TinyGroup(g, 20, 4, 25)));
  ASSERT_TRUE(client.End().ok());
  EXPECT_TRUE(WaitFor([&] { return Info(client.stub()).generated_tokens_total() == 300; }));
  const std::string scraped = server->ScrapeMetrics();
  EXPECT_THAT(scraped, HasSubstr("rl_rollout_generated_tokens_total 300"));
  EXPECT_THAT(scraped, HasSubstr("rl_rollout_requests_total{reason=\"length\"} 12"));
  EXPECT_THAT(scraped, HasSubstr("rl_rollout_prompt_tokens_total 60"));
  EXPECT_THAT(scraped, HasSubstr("rl_rollout_kv_cache_blocks_used 0"));
  EXPECT_THAT(scraped, HasSubstr("rl_component_state{state=\"serving\"} 1"));
}

TEST(ServerTest, APortInUseIsOneLine) {
  auto server = StartTinyServer();
  RolloutServerOptions options;
  options.port = std::stoi(server->address().substr(server->address().rfind(':') + 1));
  auto second = RolloutServer::Start(options, TinyBackend(10), TinyWeights(1));
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("Address already in use"));
}

TEST(ServerTest, TheCachePlanNamesTheKeyThatIsTooSmall) {
  const absl::StatusOr<int64_t> pages = PlanKvPages(TinyConfig(), DType::kF16, 1, 4, 100'000);
  ASSERT_FALSE(pages.ok());
  EXPECT_THAT(std::string(pages.status().message()), HasSubstr("rollout.kv_cache_mib"));
  const absl::StatusOr<int64_t> planned = PlanKvPages(TinyConfig(), DType::kF16, 0, 4, 160);
  ASSERT_TRUE(planned.ok());
  EXPECT_EQ(*planned, 4 * 11);
}

}  // namespace
}  // namespace lockstep
