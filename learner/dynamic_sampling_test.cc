#include "learner/dynamic_sampling.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

SampleGroup Group(const std::vector<double>& rewards) {
  SampleGroup group;
  for (double reward : rewards) {
    group.samples.emplace_back();
    group.samples.back().reward = reward;
  }
  return group;
}

TEST(DynamicSamplingTest, OnlyAGroupOfEqualRewardsIsWithoutSignal) {
  for (const auto& [rewards, usable] : std::vector<std::pair<std::vector<double>, bool>>{
           {{0, 0, 0}, false}, {{1, 1, 1}, false}, {{0, 0, 1}, true}, {{0.5}, false}, {{}, false}}) {
    SampleGroup group = Group(rewards);
    MarkWithoutSignal(&group);
    EXPECT_EQ(IsUsable(group), usable);
    for (const Sample& sample : group.samples) EXPECT_EQ(sample.dropped_reason, usable ? "" : kNoSignal);
  }
}

TEST(DynamicSamplingTest, DroppedSamplesDoNotCountAndKeepTheirReason) {
  SampleGroup group = Group({0, 0, 1});
  group.samples[2].dropped_reason = "reward";
  MarkWithoutSignal(&group);
  EXPECT_FALSE(IsUsable(group));
  EXPECT_EQ(group.samples[0].dropped_reason, kNoSignal);
  EXPECT_EQ(group.samples[2].dropped_reason, "reward");
}

TEST(DynamicSamplingTest, TheBoundIsInBatches) {
  v1::RunConfig config;
  config.mutable_trainer()->set_prompts_per_step(16);
  config.mutable_algorithm()->set_dynamic_sampling_max_batches(4);
  EXPECT_EQ(ExtraGroupsPerStep(config), 0) << "it is off";
  config.mutable_algorithm()->set_dynamic_sampling(true);
  EXPECT_EQ(ExtraGroupsPerStep(config), 48);
}

}  // namespace
}  // namespace lockstep
