#include "learner/group_assembly.h"

#include <gtest/gtest.h>

#include <limits>

namespace lockstep {
namespace {

using Outcome = GroupAssembly::Outcome;

v1::Group Request(uint32_t samples) {
  v1::Group group;
  group.set_group_id(9);
  group.set_num_samples(samples);
  group.add_prompt_token_ids(1);
  group.mutable_sampling()->set_max_tokens(4);
  group.set_min_weight_version(2);
  return group;
}

v1::TokenChunk Chunk(uint32_t attempt, uint32_t sample, uint32_t index, std::vector<int32_t> tokens,
                     v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED, uint64_t version = 2) {
  v1::TokenChunk chunk;
  chunk.set_group_id(9);
  chunk.set_attempt(attempt);
  chunk.set_sample_index(sample);
  chunk.set_token_index(index);
  for (int32_t token : tokens) {
    chunk.add_token_ids(token);
    chunk.add_log_probs(-0.5f * token);
    chunk.add_weight_versions(version);
  }
  chunk.set_finish_reason(finish);
  return chunk;
}

TEST(GroupAssemblyTest, PutsInterleavedChunksTogether) {
  GroupAssembly group(Request(2));
  EXPECT_EQ(group.NextIssue().attempt(), 1);
  EXPECT_EQ(*group.Add(Chunk(1, 1, 0, {7})), Outcome::kAppended);
  EXPECT_EQ(*group.Add(Chunk(1, 0, 0, {3, 4}, v1::FINISH_REASON_STOP)), Outcome::kSampleDone);
  EXPECT_EQ(*group.Add(Chunk(1, 1, 1, {8, 9, 10}, v1::FINISH_REASON_LENGTH, 3)), Outcome::kGroupDone);
  const std::vector<Sample> samples = group.TakeSamples();
  EXPECT_EQ(samples[0].tokens, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(samples[1].tokens, (std::vector<int32_t>{7, 8, 9, 10}));
  EXPECT_EQ(samples[1].weight_versions, (std::vector<uint64_t>{2, 3, 3, 3}));
  EXPECT_EQ(samples[1].log_probs[0], -3.5f);
  EXPECT_EQ(samples[1].finish_reason, v1::FINISH_REASON_LENGTH);
}

TEST(GroupAssemblyTest, ASecondAttemptAsksOnlyForWhatIsMissingAndStartsItAfresh) {
  GroupAssembly group(Request(3));
  EXPECT_EQ(group.NextIssue().sample_indices_size(), 0) << "the first attempt asks for all";
  ASSERT_TRUE(group.Add(Chunk(1, 1, 0, {5}, v1::FINISH_REASON_STOP)).ok());
  ASSERT_TRUE(group.Add(Chunk(1, 2, 0, {6})).ok());
  const v1::Group again = group.NextIssue();
  EXPECT_EQ(again.attempt(), 2);
  ASSERT_EQ(again.sample_indices_size(), 2);
  EXPECT_EQ(again.sample_indices(0), 0);
  EXPECT_EQ(again.sample_indices(1), 2);
  EXPECT_EQ(*group.Add(Chunk(1, 2, 1, {7})), Outcome::kStale) << "of the old attempt";
  EXPECT_EQ(*group.Add(Chunk(2, 2, 0, {6, 7}, v1::FINISH_REASON_STOP)), Outcome::kSampleDone);
  EXPECT_EQ(*group.Add(Chunk(2, 0, 0, {1}, v1::FINISH_REASON_STOP)), Outcome::kGroupDone);
  EXPECT_EQ(group.TakeSamples()[2].tokens, (std::vector<int32_t>{6, 7}));
}

TEST(GroupAssemblyTest, AChunkThatComesTwiceCountsOnce) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  ASSERT_TRUE(group.Add(Chunk(1, 0, 0, {1, 2})).ok());
  EXPECT_EQ(*group.Add(Chunk(1, 0, 0, {1, 2})), Outcome::kStale);
  EXPECT_EQ(*group.Add(Chunk(1, 0, 2, {3}, v1::FINISH_REASON_STOP)), Outcome::kGroupDone);
  EXPECT_EQ(*group.Add(Chunk(1, 0, 2, {3}, v1::FINISH_REASON_STOP)), Outcome::kStale);
}

TEST(GroupAssemblyTest, AGapIsAnErrorAndNotAWrongAlignment) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  EXPECT_EQ(group.Add(Chunk(1, 0, 2, {3})).status().message(), "group 9 sample 0 at token 2: tokens 0..1 are missing");
}

TEST(GroupAssemblyTest, WhatCannotBeIsRefusedInOneLine) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  v1::TokenChunk chunk = Chunk(1, 0, 0, {1, 2});
  chunk.mutable_log_probs()->RemoveLast();
  EXPECT_EQ(group.Add(chunk).status().message(),
            "group 9 sample 0 at token 0: 2 tokens, 1 log-probs and 2 weight versions");
  chunk = Chunk(1, 0, 0, {1});
  chunk.set_log_probs(0, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(group.Add(chunk).ok());
  chunk.set_log_probs(0, 0.5f);
  EXPECT_EQ(group.Add(chunk).status().message(),
            "group 9 sample 0 at token 0: log-prob 0.5 is not that of a probability");
  EXPECT_EQ(group.Add(Chunk(1, 0, 0, {1, 1, 1, 1, 1})).status().message(),
            "group 9 sample 0 at token 0: 5 tokens, sampling.max_tokens is 4");
  EXPECT_EQ(group.Add(Chunk(1, 0, 0, {1}, v1::FINISH_REASON_STOP, 1)).status().message(),
            "group 9 sample 0 at token 0: weight version 1 after 2");
  EXPECT_EQ(group.Add(Chunk(1, 4, 0, {1})).status().message(), "group 9 sample 4 at token 0: the group has 1 samples");
  EXPECT_EQ(group.samples_done(), 0);
}

TEST(GroupAssemblyTest, ASampleWithNonFiniteLogitsIsDroppedWithItsReason) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  EXPECT_EQ(*group.Add(Chunk(1, 0, 0, {}, v1::FINISH_REASON_NONFINITE)), Outcome::kGroupDone);
  EXPECT_EQ(group.TakeSamples()[0].dropped_reason, "nonfinite");
}

TEST(GroupAssemblyTest, ACancelledSampleAsksForAnotherAttempt) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  EXPECT_EQ(*group.Add(Chunk(1, 0, 0, {}, v1::FINISH_REASON_CANCELLED)), Outcome::kCancelled);
  EXPECT_EQ(group.NextIssue().attempt(), 2);
}

TEST(GroupAssemblyTest, NewerWeightsThatDrawASampleAnewReplaceWhatCameBefore) {
  GroupAssembly group(Request(1));
  group.NextIssue();
  ASSERT_TRUE(group.Add(Chunk(1, 0, 0, {1, 2})).ok());
  EXPECT_EQ(*group.Add(Chunk(1, 0, 0, {7}, v1::FINISH_REASON_UNSPECIFIED, 3)), Outcome::kAppended);
  EXPECT_EQ(*group.Add(Chunk(1, 0, 1, {8}, v1::FINISH_REASON_STOP, 3)), Outcome::kGroupDone);
  const Sample sample = group.TakeSamples()[0];
  EXPECT_EQ(sample.tokens, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(sample.weight_versions, (std::vector<uint64_t>{3, 3}));
  EXPECT_EQ(sample.attempt, 1u);
}

// 2 of 4 experts in one layer; prompts of 3 tokens.
class RoutedGroupTest : public ::testing::Test {
 protected:
  RoutedGroupTest() {
    shape_.layers = 1;
    shape_.top_k = 2;
    shape_.num_experts = 4;
  }
  GroupAssembly Group(uint32_t samples) const {
    v1::Group request = Request(samples);
    request.add_prompt_token_ids(2);
    request.add_prompt_token_ids(3);
    request.set_routing(true);
    return GroupAssembly(std::move(request), shape_);
  }
  static v1::PromptRouting Piece(uint32_t attempt, uint32_t first_row, std::string_view rows) {
    v1::PromptRouting piece;
    piece.set_group_id(9);
    piece.set_attempt(attempt);
    piece.set_first_row(first_row);
    piece.set_routing(std::string(rows));
    return piece;
  }
  static v1::TokenChunk Routed(v1::TokenChunk chunk, std::string_view rows) {
    chunk.set_routing(std::string(rows));
    return chunk;
  }
  RoutingShape shape_;
};

TEST_F(RoutedGroupTest, SamplesShareThePromptsRoutingAndHaveTheirOwn) {
  GroupAssembly group = Group(2);
  EXPECT_TRUE(group.NextIssue().routing());
  ASSERT_TRUE(group.AddPromptRouting(Piece(1, 0, "\1\2")).ok());
  ASSERT_TRUE(group.AddPromptRouting(Piece(1, 1, "\2\3")).ok());
  ASSERT_TRUE(group.Add(Routed(Chunk(1, 0, 0, {5, 6}), "\1\3\1\2")).ok());
  ASSERT_TRUE(group.Add(Routed(Chunk(1, 1, 0, {7}, v1::FINISH_REASON_STOP), "\1\3")).ok());
  ASSERT_TRUE(group.Add(Routed(Chunk(1, 0, 2, {8}, v1::FINISH_REASON_STOP), "\2\3")).ok());
  const std::vector<Sample> samples = group.TakeSamples();
  EXPECT_EQ(*samples[0].prompt_routing, "\1\2\2\3");
  EXPECT_EQ(samples[0].prompt_routing, samples[1].prompt_routing) << "one string";
  EXPECT_EQ(samples[0].routing, "\1\3\1\2\2\3");
  EXPECT_EQ(samples[1].routing, "\1\3");
}

TEST_F(RoutedGroupTest, APromptThatIsComputedAgainCountsForTheSamplesAfterIt) {
  GroupAssembly group = Group(2);
  group.NextIssue();
  ASSERT_TRUE(group.AddPromptRouting(Piece(1, 0, "\1\2\2\3")).ok());
  ASSERT_TRUE(group.Add(Routed(Chunk(1, 0, 0, {5}, v1::FINISH_REASON_STOP), "\1\3")).ok());
  ASSERT_TRUE(group.AddPromptRouting(Piece(1, 0, "\1\3\1\3")).ok());
  ASSERT_TRUE(group.Add(Routed(Chunk(1, 1, 0, {5}, v1::FINISH_REASON_STOP, 3), "\1\3")).ok());
  const std::vector<Sample> samples = group.TakeSamples();
  EXPECT_EQ(*samples[0].prompt_routing, "\1\2\2\3");
  EXPECT_EQ(*samples[1].prompt_routing, "\1\3\1\3");
}

TEST_F(RoutedGroupTest, ASecondAttemptNeedsThePromptsRoutingAgain) {
  GroupAssembly group = Group(1);
  group.NextIssue();
  ASSERT_TRUE(group.AddPromptRouting(Piece(1, 0, "\1\2\2\3")).ok());
  group.NextIssue();
  EXPECT_TRUE(group.AddPromptRouting(Piece(1, 0, "nonsense of an old attempt")).ok()) << "it is not looked at";
  EXPECT_EQ(group.Add(Routed(Chunk(2, 0, 0, {5}), "\1\3")).status().message(),
            "group 9 sample 0 at token 0: the first tokens came before the prompt's routing (0 of 4 bytes)");
  ASSERT_TRUE(group.AddPromptRouting(Piece(2, 0, "\1\2\2\3")).ok());
  EXPECT_EQ(*group.Add(Routed(Chunk(2, 0, 0, {5}, v1::FINISH_REASON_STOP), "\1\3")), Outcome::kGroupDone);
}

TEST_F(RoutedGroupTest, RoutingThatCannotBeIsRefusedInOneLine) {
  GroupAssembly group = Group(1);
  group.NextIssue();
  const auto piece = [&](uint32_t row, std::string_view rows) {
    return std::string(group.AddPromptRouting(Piece(1, row, rows)).message());
  };
  EXPECT_EQ(piece(1, "\1\2"), "group 9, routing of the prompt from row 1: row 0 is next");
  EXPECT_EQ(piece(0, "\1\1"),
            "group 9, routing of the prompt from row 0: routing row 0, layer 0: expert 1 after 1; ids ascend");
  EXPECT_EQ(piece(0, "\1\2\1\2\1\2"),
            "group 9, routing of the prompt from row 0: more rows than the prompt's 3 tokens but the last");
  EXPECT_EQ(piece(0, "\1\2\1\2"), "");
  EXPECT_EQ(group.Add(Chunk(1, 0, 0, {5})).status().message(),
            "group 9 sample 0 at token 0: 1 tokens with 0 bytes of routing, 2 are needed; the server may be older than "
            "this learner");
  EXPECT_EQ(group.Add(Routed(Chunk(1, 0, 0, {5}), "\1\4")).status().message(),
            "group 9 sample 0 at token 0: routing row 0, layer 0: expert 4, the model has 4");
  GroupAssembly plain(Request(1));
  plain.NextIssue();
  EXPECT_EQ(plain.Add(Routed(Chunk(1, 0, 0, {5}), "\1\2")).status().message(),
            "group 9 sample 0 at token 0: routing, which was not asked for");
}

}  // namespace
}  // namespace lockstep
