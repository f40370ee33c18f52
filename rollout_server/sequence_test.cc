#include "rollout_server/sequence.h"

#include <array>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

using enum SequenceState;

TEST(SequenceTest, MovesAreTheOnesOfTheDrawing) {
  constexpr std::array kAll = {kWaiting, kPrefill, kDecoding, kEvicted, kFinished};
  // legal[from][to], in the order of kAll.
  constexpr bool kLegal[5][5] = {
      {true, true, true, false, true},     // waiting
      {true, false, true, true, true},     // prefill
      {true, false, false, true, true},    // decoding
      {true, true, false, false, true},    // evicted
      {false, false, false, false, false}  // finished
  };
  for (size_t from = 0; from < kAll.size(); ++from) {
    for (size_t to = 0; to < kAll.size(); ++to) {
      EXPECT_EQ(IsLegalMove(kAll[from], kAll[to]), kLegal[from][to])
          << SequenceStateName(kAll[from]) << " to " << SequenceStateName(kAll[to]);
    }
  }
}

TEST(SequenceTest, AnIllegalMoveIsABug) {
  Sequence sequence;
  sequence.MoveTo(kFinished);
  EXPECT_DEATH(sequence.MoveTo(kDecoding), "check failed");
}

Sequence ThreeTokens() {
  Sequence sequence;
  sequence.group = std::make_shared<ActiveGroup>();
  sequence.group->spec.set_group_id(7);
  sequence.group->spec.set_attempt(2);
  sequence.group->spec.add_prompt_token_ids(50);
  sequence.sample_index = 3;
  sequence.tokens = {11, 12, 13};
  sequence.log_probs = {-1.0f, -2.0f, -3.0f};
  sequence.weight_versions = {4, 4, 5};
  return sequence;
}

TEST(SequenceTest, ChunksAreConsecutiveAndEachTokenIsSentOnce) {
  Sequence sequence = ThreeTokens();
  const v1::TokenChunk first = sequence.TakeChunk(v1::FINISH_REASON_UNSPECIFIED).chunk();
  EXPECT_EQ(first.group_id(), 7u);
  EXPECT_EQ(first.attempt(), 2u);
  EXPECT_EQ(first.sample_index(), 3u);
  EXPECT_EQ(first.token_index(), 0u);
  ASSERT_EQ(first.token_ids_size(), 3);
  EXPECT_EQ(first.weight_versions(2), 5u);
  sequence.tokens.push_back(14);
  sequence.log_probs.push_back(-4.0f);
  sequence.weight_versions.push_back(5);
  const v1::TokenChunk last = sequence.TakeChunk(v1::FINISH_REASON_LENGTH).chunk();
  EXPECT_EQ(last.token_index(), 3u);
  ASSERT_EQ(last.token_ids_size(), 1);
  EXPECT_EQ(last.token_ids(0), 14);
  EXPECT_EQ(last.log_probs(0), -4.0f);
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(SequenceTest, PositionsRunOverPromptAndResponse) {
  const Sequence sequence = ThreeTokens();
  EXPECT_EQ(sequence.total(), 4);
  EXPECT_EQ(sequence.token_at(0), 50);
  EXPECT_EQ(sequence.token_at(3), 13);
}

TEST(SequenceTest, ARestartedSampleBeginsAtTokenZeroAgain) {
  Sequence sequence = ThreeTokens();
  sequence.TakeChunk(v1::FINISH_REASON_UNSPECIFIED);
  sequence.ForgetResponse();
  sequence.tokens = {21};
  sequence.log_probs = {-1.5f};
  sequence.weight_versions = {6};
  const v1::TokenChunk chunk = sequence.TakeChunk(v1::FINISH_REASON_STOP).chunk();
  EXPECT_EQ(chunk.token_index(), 0u);
  EXPECT_EQ(chunk.token_ids(0), 21);
}

TEST(SequenceTest, APromptsRoutingGoesOutOnceInPiecesThatAMessageHolds) {
  auto group = std::make_shared<ActiveGroup>();
  group->spec.set_group_id(7);
  group->spec.set_attempt(2);
  for (int i = 0; i < 6; ++i) group->spec.add_prompt_token_ids(i);
  group->routing_row_bytes = kMaxRoutingBytes / 2 - 1;  // two rows a message
  Sequence first, second;
  first.group = second.group = group;
  for (int position = 0; position < 6; ++position) {
    const std::string row(group->routing_row_bytes, static_cast<char>('a' + position));
    first.RecordPromptRow(position, row.data());
    first.RecordPromptRow(0, row.data());  // computed again: the first time counts
  }
  second.prompt_routing = first.prompt_routing;
  const std::vector<v1::GenerateResponse> pieces = first.TakePromptRouting();
  ASSERT_EQ(pieces.size(), 3u);  // 5 rows: the last position's is the first token's
  std::string rows;
  for (const v1::GenerateResponse& piece : pieces) {
    EXPECT_EQ(piece.prompt_routing().group_id(), 7u);
    EXPECT_EQ(piece.prompt_routing().attempt(), 2u);
    EXPECT_EQ(piece.prompt_routing().first_row() * group->routing_row_bytes, rows.size());
    EXPECT_LE(piece.prompt_routing().routing().size(), kMaxRoutingBytes);
    rows += piece.prompt_routing().routing();
  }
  for (size_t position = 0; position < 5; ++position) {
    EXPECT_EQ(rows[position * group->routing_row_bytes], static_cast<char>('a' + position));
  }
  EXPECT_EQ(rows.size(), 5 * group->routing_row_bytes);
  EXPECT_TRUE(second.TakePromptRouting().empty()) << "its sibling has sent it";
  second.ForgetResponse();
  for (int position = 0; position < 6; ++position) second.RecordPromptRow(position, rows.data());
  EXPECT_EQ(second.TakePromptRouting().size(), 3u) << "a new prefill has routing of its own";
}

}  // namespace
}  // namespace lockstep
