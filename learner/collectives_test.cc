#include "learner/collectives.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/channel.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

class CollectivesTest : public testing::TestWithParam<int> {
 protected:
  CollectivesTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    auto started = StartServer(builder, "127.0.0.1", 0);
    EXPECT_TRUE(started.ok()) << started.status();
    listening_ = *std::move(started);
  }
  // Runs `body` once a rank, each on a thread with its own member of the group.
  void OnAllRanks(int world_size, const std::function<void(Collectives&)>& body) {
    std::vector<std::thread> threads;
    // A new group each time: under an old prefix the table still has the addresses of the members before.
    const std::string prefix = absl::StrCat("test", groups_++);
    for (int rank = 0; rank < world_size; ++rank) {
      threads.emplace_back([&, rank] {
        auto collectives = MakeGlooCollectives({.rank = rank,
                                                .world_size = world_size,
                                                .rank0_address = listening_.address,
                                                .prefix = prefix,
                                                .connect_timeout = absl::Seconds(30)});
        ASSERT_TRUE(collectives.ok()) << collectives.status();
        body(**collectives);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  int groups_ = 0;
  RendezvousService service_{std::make_shared<RendezvousTable>()};
  ListeningServer listening_;
};

constexpr absl::Duration kTimeout = absl::Seconds(20);

TEST_P(CollectivesTest, SumsAreTheSameBitsOnEveryRank) {
  const int world_size = GetParam();
  for (int64_t n : {1, 7, 300'001}) {
    std::vector<std::vector<float>> results(world_size);
    OnAllRanks(world_size, [&](Collectives& ranks) {
      std::vector<float> data(n);
      for (int64_t i = 0; i < n; ++i) data[i] = 1.0f / (1 + i % 97) + 1e-3f * ranks.rank();
      ASSERT_TRUE(ranks.AllReduceSum(data.data(), n, kTimeout).ok());
      results[ranks.rank()] = data;
      ASSERT_TRUE(ranks.Barrier(kTimeout).ok());
    });
    for (int rank = 1; rank < world_size; ++rank) EXPECT_EQ(results[rank], results[0]);
    const float expected = world_size * 1.0f + 1e-3f * world_size * (world_size - 1) / 2;
    EXPECT_NEAR(results[0][0], expected, 4e-7f * world_size);
  }
}

TEST_P(CollectivesTest, OneRankThatDisagreesIsEnough) {
  OnAllRanks(GetParam(), [&](Collectives& ranks) {
    EXPECT_TRUE(*ranks.AllAgree(true, kTimeout));
    EXPECT_FALSE(*ranks.AllAgree(ranks.rank() != ranks.world_size() - 1, kTimeout));
    double maximum = ranks.rank();
    ASSERT_TRUE(ranks.AllReduceMax(&maximum, 1, kTimeout).ok());
    EXPECT_EQ(maximum, ranks.world_size() - 1);
    ASSERT_TRUE(ranks.Barrier(kTimeout).ok());
  });
}

TEST_P(CollectivesTest, BroadcastGivesRankZerosBytesToAll) {
  OnAllRanks(GetParam(), [&](Collectives& ranks) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{5'000'000}}) {
      std::string bytes = ranks.rank() == 0 ? std::string(size, 'a') : "old content";
      ASSERT_TRUE(ranks.Broadcast(&bytes, kTimeout).ok());
      EXPECT_EQ(bytes, std::string(size, 'a'));
    }
    ASSERT_TRUE(ranks.Barrier(kTimeout).ok());
  });
}

INSTANTIATE_TEST_SUITE_P(WorldSize, CollectivesTest, testing::Values(2, 3));

TEST_F(CollectivesTest, ARankThatStaysAwayIsAnErrorAtTheDeadline) {
  OnAllRanks(2, [&](Collectives& ranks) {
    if (ranks.rank() == 1) return;  // leaves: its connections close
    std::vector<float> data(1000, 1.0f);
    const absl::Time start = absl::Now();
    const absl::Status status = ranks.AllReduceSum(data.data(), 1000, absl::Seconds(2));
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find("this is rank 0"), std::string::npos) << status;
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  });
}

TEST_F(CollectivesTest, ARankThatNeverComesIsAnErrorThatNamesTheMeetingPoint) {
  const auto alone = MakeGlooCollectives({.rank = 1,
                                          .world_size = 2,
                                          .rank0_address = listening_.address,
                                          .prefix = "alone",
                                          .connect_timeout = absl::Seconds(1)});
  ASSERT_FALSE(alone.ok());
  EXPECT_NE(alone.status().message().find("learner ranks cannot meet at " + listening_.address), std::string::npos)
      << alone.status();
}

TEST(SingleRankTest, EveryCallIsTheIdentity) {
  auto single = MakeSingleRankCollectives();
  float value = 3;
  EXPECT_TRUE(single->AllReduceSum(&value, 1, kTimeout).ok());
  EXPECT_EQ(value, 3);
  EXPECT_FALSE(*single->AllAgree(false, kTimeout));
}

}  // namespace
}  // namespace lockstep
