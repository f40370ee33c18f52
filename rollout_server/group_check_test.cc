#include "rollout_server/group_check.h"

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

constexpr GroupLimits kLimits{.vocab_size = 100, .max_position_embeddings = 64, .kv_cache_tokens = 48};

v1::Group ValidGroup() {
  v1::Group group;
  group.set_run_id("run");
  group.set_num_samples(4);
  for (int i = 0; i < 8; ++i) group.add_prompt_token_ids(i);
  group.mutable_sampling()->set_temperature(1);
  group.mutable_sampling()->set_top_p(1);
  group.mutable_sampling()->set_max_tokens(16);
  return group;
}

TEST(GroupCheckTest, TakesValidGroups) {
  EXPECT_TRUE(CheckGroup(ValidGroup(), kLimits).ok());
  v1::Group edges = ValidGroup();
  edges.mutable_sampling()->set_temperature(0);
  edges.mutable_sampling()->set_top_p(0.01f);
  edges.mutable_sampling()->set_top_k(1'000'000);
  edges.mutable_sampling()->set_max_tokens(40);
  edges.mutable_sampling()->add_stop_token_ids(99);
  edges.add_sample_indices(3);
  EXPECT_TRUE(CheckGroup(edges, kLimits).ok()) << CheckGroup(edges, kLimits);
}

TEST(GroupCheckTest, RefusesEachBadFieldByNameAndValue) {
  struct Case {
    std::function<void(v1::Group&)> spoil;
    const char* message;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Case> cases = {
      {[](v1::Group& g) { g.set_num_samples(0); }, "num_samples 0"},
      {[](v1::Group& g) { g.set_num_samples(1'000'000'000); }, "num_samples 1000000000"},
      {[](v1::Group& g) { g.set_num_samples(kMaxSamplesPerGroup + 1); }, "num_samples 1025"},
      {[](v1::Group& g) { g.add_sample_indices(4); }, "sample_indices has 4"},
      {[](v1::Group& g) { g.add_sample_indices(1), g.add_sample_indices(1); }, "twice"},
      {[](v1::Group& g) { g.mutable_sample_indices()->Resize(5, 0); }, "5 entries for 4"},
      {[](v1::Group& g) { g.clear_prompt_token_ids(); }, "prompt is empty"},
      {[](v1::Group& g) { g.set_prompt_token_ids(3, 100); }, "prompt_token_ids[3] is 100"},
      {[](v1::Group& g) { g.set_prompt_token_ids(3, -1); }, "prompt_token_ids[3] is -1"},
      {[](v1::Group& g) { g.mutable_prompt_token_ids()->Resize(60, 1); }, "76 tokens, above the model's 64"},
      {[](v1::Group& g) { g.mutable_sampling()->set_max_tokens(0); }, "max_tokens is 0"},
      {[](v1::Group& g) { g.mutable_sampling()->set_max_tokens(4'000'000'000u); }, "4000000008 tokens"},
      {[](v1::Group& g) { g.mutable_sampling()->set_temperature(-1); }, "temperature -1"},
      {[](v1::Group& g) { g.mutable_sampling()->set_temperature(1e-30f); }, "temperature 1e-30"},
      {[nan](v1::Group& g) { g.mutable_sampling()->set_temperature(nan); }, "temperature nan"},
      {[](v1::Group& g) { g.mutable_sampling()->set_top_p(0); }, "top_p 0"},
      {[](v1::Group& g) { g.mutable_sampling()->set_top_p(1.5f); }, "top_p 1.5"},
      {[nan](v1::Group& g) { g.mutable_sampling()->set_top_p(nan); }, "top_p nan"},
      {[](v1::Group& g) { g.mutable_sampling()->add_stop_token_ids(100); }, "stop_token_ids has 100"},
      {[](v1::Group& g) { g.mutable_sampling()->mutable_stop_token_ids()->Resize(65, 0); }, "65 ids; at most 64"},
      {[](v1::Group& g) { g.set_run_id(std::string(300, 'x')); }, "run_id has 300 bytes"},
      {[](v1::Group& g) { g.set_routing(true); }, "routing was asked for, and this server's model has no experts"},
  };
  for (const Case& c : cases) {
    v1::Group group = ValidGroup();
    c.spoil(group);
    const absl::Status status = CheckGroup(group, kLimits);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(c.message));
    EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
  }
}

TEST(GroupCheckTest, WhatCanNeverFitTheCacheIsExhausted) {
  v1::Group group = ValidGroup();
  group.mutable_sampling()->set_max_tokens(40);
  EXPECT_TRUE(CheckGroup(group, kLimits).ok());
  group.mutable_sampling()->set_max_tokens(41);
  const absl::Status status = CheckGroup(group, kLimits);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("rollout.kv_cache_mib"));
}

}  // namespace
}  // namespace lockstep
