// Evaluate against a rollout server that answers from a table.
#include "learner/evaluation.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/tokenizer/arithmetic.h"
#include "learner/sampling.h"
#include "proto/channel.h"

namespace lockstep {
namespace {

// Answers sample i of each group with answers[group's order of ids][i]; "" is a response of max_tokens tokens that is
// cut, "!" one that is not usable.
class TableServer : public v1::Rollout::Service {
 public:
  explicit TableServer(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::ServerInfoRequest*, v1::ServerInfo* info) override {
    info->set_dtype("fp16");
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext*,
                        grpc::ServerReaderWriter<v1::GenerateResponse, v1::GenerateRequest>* stream) override {
    v1::GenerateResponse credits;
    credits.mutable_credits()->set_groups(2);
    stream->Write(credits);
    v1::GenerateRequest request;
    while (stream->Read(&request)) {
      if (!request.has_group()) continue;
      const v1::Group& group = request.group();
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        groups.push_back(group);
      }
      const std::string prompt = tokenizer_->Decode({group.prompt_token_ids().begin(), group.prompt_token_ids().end()});
      for (uint32_t i = 0; i < group.num_samples(); ++i) stream->Write(Chunk(group, i, answers.at(prompt).at(i)));
      credits.mutable_credits()->set_groups(1);
      stream->Write(credits);
    }
    return grpc::Status::OK;
  }

  std::map<std::string, std::vector<std::string>> answers;
  std::vector<v1::Group> groups;

 private:
  v1::GenerateResponse Chunk(const v1::Group& group, uint32_t sample, const std::string& answer) const {
    v1::GenerateResponse response;
    v1::TokenChunk& chunk = *response.mutable_chunk();
    chunk.set_group_id(group.group_id());
    chunk.set_sample_index(sample);
    chunk.set_attempt(group.attempt());
    std::vector<int32_t> tokens = *tokenizer_->Encode(answer.empty() ? std::string("7") : answer == "!" ? "1" : answer);
    if (answer.empty()) tokens.resize(group.sampling().max_tokens(), tokens.front());
    chunk.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    for (size_t i = 0; i < tokens.size(); ++i) {
      chunk.add_log_probs(-1);
      chunk.add_weight_versions(group.min_weight_version());
    }
    chunk.set_weight_epoch(group.min_weight_epoch());
    chunk.set_finish_reason(answer.empty()  ? v1::FINISH_REASON_LENGTH
                            : answer == "!" ? v1::FINISH_REASON_NONFINITE
                                            : v1::FINISH_REASON_STOP);
    return response;
  }

  const Tokenizer* tokenizer_;
  std::mutex mutex_;
};

class EvaluationTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string dir = testing::TempDir() + "/evaluation_test_tokenizer";
    std::filesystem::create_directories(dir);
    ASSERT_TRUE(MakeArithmeticTokenizer(dir).ok());
    tokenizer_ = *Tokenizer::Load(dir);
    server_ = std::make_unique<TableServer>(tokenizer_.get());
    server_->answers = {
        {"1+1=", {"2", "A: 2", "3", ""}}, {"2+2=", {"5", "5", "4", "!"}}, {"3+3=", {"6", "6", "6", "6"}}};
    const std::vector<std::pair<std::string, std::string>> asked = {{"1+1=", "2"}, {"2+2=", "4"}, {"3+3=", "6"}};
    for (const auto& [prompt, answer] : asked) {
      Problem problem;
      problem.prompt_tokens = *tokenizer_->Encode(prompt);
      problem.answer = answer;
      problems_.push_back(std::move(problem));
    }
    grpc::ServerBuilder builder;
    builder.RegisterService(server_.get());
    listening_ = *StartServer(builder, "127.0.0.1", 0);
    rollouts_ = std::make_unique<RolloutClient>(RolloutClientOptions(), std::vector{listening_.address}, &metrics_);
    rollouts_->SetWeights({0, 0}, {});
    parts_.config.set_seed(9);
    parts_.config.mutable_rollout()->set_n(2);
    parts_.config.mutable_rollout()->set_max_tokens(5);
    parts_.config.mutable_eval()->set_n(4);
    parts_.config.mutable_eval()->set_temperature(0.6f);
    parts_.config.mutable_eval()->set_top_p(0.95f);
    parts_.tokenizer = tokenizer_.get();
    parts_.problems = &problems_;
    parts_.rollouts = rollouts_.get();
    parts_.config.mutable_data()->set_reward("numeric");
    rewards_ = *GroupRewards::Create(parts_.config.data(), "run", tokenizer_.get(), &metrics_);
    parts_.rewards = rewards_.get();
    parts_.between = [](size_t) { return absl::OkStatus(); };
  }
  void TearDown() override {
    rollouts_.reset();
    listening_.server->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TableServer> server_;
  std::vector<Problem> problems_;
  MetricsRegistry metrics_{"learner"};
  ListeningServer listening_;
  std::unique_ptr<RolloutClient> rollouts_;
  std::unique_ptr<GroupRewards> rewards_;
  EvaluationParts parts_;
};

TEST_F(EvaluationTest, FiguresAreThoseOfTheTable) {
  parts_.step = 12;
  const auto evaluation = Evaluate(parts_);
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  const v1::EvalSummary& summary = evaluation->summary;
  EXPECT_EQ(summary.step(), 12u);
  EXPECT_EQ(summary.problems(), 3u);
  // Right samples: 2, 1 and 4 of 4.
  EXPECT_DOUBLE_EQ(summary.pass_at_k().at(1), (0.5 + 0.25 + 1) / 3);
  EXPECT_DOUBLE_EQ(summary.pass_at_k().at(2), (5.0 / 6 + 0.5 + 1) / 3);
  EXPECT_DOUBLE_EQ(summary.pass_at_k().at(4), 1);
  EXPECT_DOUBLE_EQ(summary.majority_at_k().at(4), (1.0 + 0 + 1) / 3) << "2 beats 3; two 5s beat one 4; 6";
  EXPECT_DOUBLE_EQ(summary.cut_by_length(), 1.0 / 12);
  EXPECT_DOUBLE_EQ(summary.no_answer(), 2.0 / 12) << "the sample that was cut and the one that is not usable";
  EXPECT_EQ(summary.dropped_samples(), 1u);
  ASSERT_EQ(evaluation->problems.size(), 3);
  EXPECT_EQ(evaluation->problems[1].right, 1u);
}

TEST_F(EvaluationTest, GroupsHaveTheSettingsOfSectionEvalAndIdsOfTheirOwn) {
  parts_.step = 3;
  ASSERT_TRUE(Evaluate(parts_).ok());
  parts_.step = 4;
  parts_.config.mutable_eval()->set_max_tokens(7);
  ASSERT_TRUE(Evaluate(parts_).ok());
  ASSERT_EQ(server_->groups.size(), 6);
  std::set<uint64_t> ids;
  for (const v1::Group& group : server_->groups) {
    ids.insert(group.group_id());
    EXPECT_GE(group.group_id(), kFirstEvaluationGroup);
    EXPECT_LT(group.group_id(), uint64_t{1} << 63) << "the ledger's integers are signed";
    EXPECT_EQ(group.num_samples(), 4u);
    EXPECT_EQ(group.seed(), 9u);
    EXPECT_FLOAT_EQ(group.sampling().temperature(), 0.6f);
    EXPECT_FLOAT_EQ(group.sampling().top_p(), 0.95f);
  }
  EXPECT_EQ(ids.size(), 6) << "another step draws anew";
  EXPECT_EQ(server_->groups.front().sampling().max_tokens(), 5u) << "0 takes rollout.max_tokens";
  EXPECT_EQ(server_->groups.back().sampling().max_tokens(), 7u);
}

TEST_F(EvaluationTest, GivingUpReturnsTheReason) {
  parts_.between = [](size_t done) { return done == 0 ? absl::OkStatus() : absl::CancelledError("enough"); };
  EXPECT_EQ(Evaluate(parts_).status(), absl::CancelledError("enough"));
}

TEST_F(EvaluationTest, ReportAndLineHoldTheFigures) {
  parts_.step = 2;
  const auto evaluation = Evaluate(parts_);
  ASSERT_TRUE(evaluation.ok()) << evaluation.status();
  const auto line = nlohmann::json::parse(EvalSummaryJson(evaluation->summary));
  EXPECT_EQ(line["step"], 2);
  EXPECT_EQ(line["eval"]["pass@4"], 1.0);
  EXPECT_EQ(line["eval"]["problems"], 3);
  const auto report = nlohmann::json::parse(EvaluationReport(parts_.config, *evaluation));
  EXPECT_EQ(report["results"]["pass@1"], line["eval"]["pass@1"]);
  EXPECT_EQ(report["problems"].size(), 3);
  EXPECT_EQ(report["sampling"]["n"], 4);
  EXPECT_EQ(EvalSummaryText(evaluation->summary).substr(0, 13), "pass@1 0.5833");
}

TEST(EvaluationSettingsTest, TheDigestFollowsWhatFiguresDependOnAndNothingElse) {
  v1::RunConfig config;
  config.mutable_eval()->set_n(4);
  const std::string digest = EvaluationSettingsDigest(config);
  v1::RunConfig other = config;
  other.mutable_trainer()->set_max_steps(7);
  other.mutable_rollout()->set_threads(3);
  other.mutable_rollout()->add_addresses("a:1");
  other.set_run_dir("elsewhere");
  EXPECT_EQ(EvaluationSettingsDigest(other), digest);
  other.mutable_eval()->set_n(5);
  EXPECT_NE(EvaluationSettingsDigest(other), digest);
  other = config;
  other.mutable_learner()->set_lr(1);
  EXPECT_NE(EvaluationSettingsDigest(other), digest);
}

}  // namespace
}  // namespace lockstep
