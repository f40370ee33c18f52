#include "rollout_server/reuse_pool.h"

#include <gtest/gtest.h>

#include <optional>

namespace lockstep {
namespace {

class ReusePoolTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<int>> Take() {
    return pool_->Take([this]() -> absl::StatusOr<std::unique_ptr<int>> {
      if (!make_.ok()) return make_;
      return std::make_unique<int>(made_++);
    });
  }
  std::optional<ReusePool<int>> pool_{std::in_place, "numbers", 2};
  int made_ = 0;
  absl::Status make_;
};

TEST_F(ReusePoolTest, WhatNobodyHoldsIsHandedOutAgain) {
  auto first = Take();
  ASSERT_TRUE(first.ok());
  auto copy = *first;
  first->reset();
  EXPECT_EQ(**Take(), 1) << "a copy holds it";
  copy.reset();
  EXPECT_EQ(**Take(), 0);
  EXPECT_EQ(made_, 2);
}

TEST_F(ReusePoolTest, NoMoreAreMadeThanTheLimit) {
  auto first = Take(), second = Take();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(Take().status(), absl::ResourceExhaustedError("all 2 numbers are in use"));
  second->reset();
  EXPECT_EQ(**Take(), 1);
}

TEST_F(ReusePoolTest, OneThatCannotBeMadeTakesNoPlace) {
  make_ = absl::InternalError("no");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Take().status(), make_);
  make_ = absl::OkStatus();
  auto first = Take(), second = Take();
  EXPECT_TRUE(first.ok() && second.ok());
}

TEST_F(ReusePoolTest, WhatIsHeldOutlivesThePool) {
  auto first = Take();
  pool_.reset();
  EXPECT_EQ(**first, 0);
}

}  // namespace
}  // namespace lockstep
