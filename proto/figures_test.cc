#include "proto/figures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "proto/learner.pb.h"

namespace lockstep {
namespace {

std::map<std::string, double> ByTag(const std::vector<Scalar>& scalars) {
  std::map<std::string, double> tags;
  for (const Scalar& scalar : scalars) tags[scalar.tag] = scalar.value;
  return tags;
}

TEST(FiguresTest, EveryFieldOfAStepSummaryHasATagOfItsOwn) {
  std::set<std::string> names, tags;
  for (const FigureSpec& spec : StepFigureSpecs()) {
    EXPECT_TRUE(names.insert(std::string(spec.name)).second) << spec.name;
    EXPECT_TRUE(tags.insert(std::string(spec.tag)).second) << spec.tag;
    EXPECT_TRUE(spec.name == "step" || spec.tag.find('/') != std::string_view::npos) << spec.name;
  }
  const auto* descriptor = v1::StepSummary::descriptor();
  size_t fields = 0;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    if (descriptor->field(i)->is_map()) continue;
    EXPECT_TRUE(names.count(descriptor->field(i)->name()) == 1) << descriptor->field(i)->name();
    ++fields;
  }
  EXPECT_EQ(names.size(), fields);
}

TEST(FiguresTest, ReadsALineOfAStep) {
  const auto line = ParseFigures(
      R"({"step":3,"reward_mean":0.5,"loss":null,"skipped":true,"response_tokens":"120","seconds":{"rollout":1.25}})");
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->step, 3u);
  EXPECT_FALSE(line->evaluation);
  const auto tags = ByTag(StepScalars(line->figures, false));
  EXPECT_EQ(tags.at("train/reward"), 0.5);
  EXPECT_TRUE(std::isnan(tags.at("train/loss")));
  EXPECT_EQ(tags.at("optim/skipped"), 1);
  EXPECT_EQ(tags.at("train/response_tokens"), 120);
  EXPECT_EQ(tags.at("perf/seconds/rollout"), 1.25);
  EXPECT_EQ(tags.size(), 5u);  // neither the step nor what the line does not have
}

TEST(FiguresTest, ASupervisedStepHasNoFiguresOfSampling) {
  const auto line = ParseFigures(R"({"step":3,"reward_mean":0,"kl_k3":0,"loss":2,"grad_norm":1})");
  ASSERT_TRUE(line.ok());
  const auto tags = ByTag(StepScalars(line->figures, true));
  EXPECT_EQ(tags, (std::map<std::string, double>{{"train/loss", 2}, {"optim/grad_norm", 1}}));
}

TEST(FiguresTest, AnEvaluationReadsTheSameFromTheLedgerAndFromMetricsJsonl) {
  const auto ledger = ParseLedgerEvaluation(
      R"({"step":"4","weightVersion":"4","problems":"10","n":2,"passAtK":{"1":0.5,"2":0.75},"majorityAtK":{"2":0.5},)"
      R"("responseLengthMean":7.5,"cutByLength":0.25,"responseTokens":"150","seconds":1.5})");
  ASSERT_TRUE(ledger.ok()) << ledger.status();
  const auto line = ParseFigures(
      R"({"step":4,"eval":{"weight_version":4,"problems":10,"n":2,"pass@1":0.5,"pass@2":0.75,"maj@2":0.5,)"
      R"("response_length_mean":7.5,"response_tokens":150,"cut_by_length":0.25,"no_answer":0.0,"dropped_samples":0,)"
      R"("seconds":1.5}})");
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_TRUE(line->evaluation && ledger->evaluation);
  EXPECT_EQ(line->step, ledger->step);
  EXPECT_EQ(line->figures, ledger->figures);
  EXPECT_EQ(ByTag(EvaluationScalars(line->figures)).at("eval/pass_at_2"), 0.75);
  EXPECT_EQ(ByTag(EvaluationScalars(line->figures)).at("eval/majority_at_2"), 0.5);
}

TEST(FiguresTest, WhatIsNoLineIsRefused) {
  for (const char* text : {"", "[]", "{", "{}", R"({"step":-1})", R"({"step":1.5})", R"({"step":"x"})",
                           R"({"step":1e300})", R"({"step":null})"}) {
    EXPECT_FALSE(ParseFigures(text).ok()) << text;
  }
  EXPECT_FALSE(ParseLedgerEvaluation("[1").ok());
}

}  // namespace
}  // namespace lockstep
