#include "learner/loss_scaler.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace lockstep {
namespace {

v1::LossScaleConfig Config(std::string_view mode, float init, uint32_t interval, uint32_t max_skips) {
  v1::LossScaleConfig config;
  config.set_mode(std::string(mode));
  config.set_init(init);
  config.set_growth_interval(interval);
  config.set_max_consecutive_skips(max_skips);
  return config;
}

TEST(LossScalerTest, DefaultsAreThoseOfTorchGradScaler) {
  const LossScaler scaler = *LossScaler::Create(v1::LossScaleConfig(), DType::kF16);
  EXPECT_EQ(scaler.scale(), 65536.0f);
  EXPECT_TRUE(scaler.dynamic());
}

// The sequence of torch.cuda.amp.GradScaler(init_scale=1024, growth_interval=3), f = finite, x = inf found:
// after each update the scale that torch reports.
TEST(LossScalerTest, FollowsTorchGradScalerStepByStep) {
  LossScaler scaler = *LossScaler::Create(Config("dynamic", 1024, 3, 5), DType::kF32);
  const std::string_view events = "fffffxfxxffff";
  const std::vector<float> scales = {1024, 1024, 2048, 2048, 2048, 1024, 1024, 512, 256, 256, 256, 512, 512};
  for (size_t i = 0; i < events.size(); ++i) {
    ASSERT_TRUE(scaler.Update(events[i] == 'f').ok());
    EXPECT_EQ(scaler.scale(), scales[i]) << "after event " << i;
  }
  EXPECT_EQ(scaler.state().skipped_steps_total, 3);
}

TEST(LossScalerTest, GrowthStopsBeforeTheScaleIsInfinite) {
  LossScaler scaler = *LossScaler::Create(Config("dynamic", 0x1p127f, 1, 5), DType::kF16);
  ASSERT_TRUE(scaler.Update(true).ok());
  EXPECT_EQ(scaler.scale(), 0x1p127f);
}

TEST(LossScalerTest, AutoIsDynamicForHalfPrecisionOnly) {
  EXPECT_TRUE(LossScaler::Create(Config("auto", 0, 0, 0), DType::kF16)->dynamic());
  EXPECT_FALSE(LossScaler::Create(Config("auto", 0, 0, 0), DType::kBF16)->dynamic());
  EXPECT_EQ(LossScaler::Create(Config("auto", 0, 0, 0), DType::kF32)->scale(), 1.0f);
}

TEST(LossScalerTest, SkipsInARowAtTheFloorEndTheRunWithAReason) {
  LossScaler scaler = *LossScaler::Create(Config("dynamic", 4, 100, 3), DType::kF16);
  EXPECT_TRUE(scaler.Update(false).ok());  // 2
  EXPECT_TRUE(scaler.Update(false).ok());  // 1
  EXPECT_TRUE(scaler.Update(false).ok());
  EXPECT_TRUE(scaler.Update(false).ok());
  const absl::Status status = scaler.Update(false);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("3 steps in a row at loss scale 1"), std::string::npos) << status;
}

TEST(LossScalerTest, AFiniteStepResetsTheCountAtTheFloor) {
  LossScaler scaler = *LossScaler::Create(Config("dynamic", 1, 100, 2), DType::kF16);
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(scaler.Update(false).ok());
    ASSERT_TRUE(scaler.Update(true).ok());
  }
}

TEST(LossScalerTest, ARestoredScalerGoesOnAsIfItHadNotStopped) {
  LossScaler first = *LossScaler::Create(Config("dynamic", 1024, 4, 5), DType::kF16);
  for (bool finite : {true, false, true, true, true}) ASSERT_TRUE(first.Update(finite).ok());
  LossScaler second = *LossScaler::Create(Config("dynamic", 1024, 4, 5), DType::kF16);
  second.Restore(first.state());
  for (bool finite : {true, false, true}) {
    ASSERT_TRUE(first.Update(finite).ok());
    ASSERT_TRUE(second.Update(finite).ok());
    EXPECT_EQ(first.scale(), second.scale());
  }
}

TEST(LossScalerTest, BadSettingsAreRefusedByKeyAndValue) {
  EXPECT_EQ(LossScaler::Create(Config("always", 0, 0, 0), DType::kF16).status().message(),
            "learner.loss_scale.mode is 'always'; known are auto, dynamic, off");
  v1::LossScaleConfig config;
  config.set_backoff_factor(1.5f);
  EXPECT_EQ(LossScaler::Create(config, DType::kF16).status().message(),
            "learner.loss_scale.backoff_factor is 1.5; must be in (0, 1)");
}

}  // namespace
}  // namespace lockstep
