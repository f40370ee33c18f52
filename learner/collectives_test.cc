#include "learner/collectives.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "learner/collectives_nccl.h"
#include "proto/channel.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

enum Kind { kGloo, kNccl };

class CollectivesTest : public testing::TestWithParam<std::tuple<int, Kind>> {
 protected:
  CollectivesTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    auto started = StartServer(builder, "127.0.0.1", 0);
    EXPECT_TRUE(started.ok()) << started.status();
    listening_ = *std::move(started);
  }
  absl::StatusOr<std::unique_ptr<Collectives>> Make(Kind kind, int rank, int world_size, const std::string& prefix,
                                                    absl::Duration connect_timeout) {
    if (kind == kGloo) {
      return MakeGlooCollectives({.rank = rank,
                                  .world_size = world_size,
                                  .rank0_address = listening_.address,
                                  .prefix = prefix,
                                  .connect_timeout = connect_timeout});
    }
    return MakeNcclCollectives({.rank = rank,
                                .world_size = world_size,
                                .device = MakeEmulatedDevice(absl::StrCat("gpu", rank)),
                                .rank0_address = listening_.address,
                                .prefix = prefix,
                                .connect_timeout = connect_timeout});
  }
  int world_size() const { return std::get<0>(GetParam()); }
  // Runs `body` once a rank, each on a thread with its own member of the group.
  void OnAllRanks(const std::function<void(Collectives&)>& body) {
    OnAllRanks(std::get<1>(GetParam()), world_size(), body);
  }
  void OnAllRanks(Kind kind, int world_size, const std::function<void(Collectives&)>& body) {
    std::vector<std::thread> threads;
    // A new group each time: under an old prefix the table still has the addresses of the members before.
    const std::string prefix = absl::StrCat("test", groups_++);
    for (int rank = 0; rank < world_size; ++rank) {
      threads.emplace_back([&, rank] {
        auto collectives = Make(kind, rank, world_size, prefix, absl::Seconds(30));
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
  const int world_size = this->world_size();
  // The last is more than a staged piece.
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{300'001}, kStagedPiece / 4 + 5}) {
    std::vector<std::vector<float>> results(world_size);
    OnAllRanks([&](Collectives& ranks) {
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
  OnAllRanks([&](Collectives& ranks) {
    EXPECT_TRUE(*ranks.AllAgree(true, kTimeout));
    EXPECT_FALSE(*ranks.AllAgree(ranks.rank() != ranks.world_size() - 1, kTimeout));
    double maximum = ranks.rank();
    ASSERT_TRUE(ranks.AllReduceMax(&maximum, 1, kTimeout).ok());
    EXPECT_EQ(maximum, ranks.world_size() - 1);
    ASSERT_TRUE(ranks.Barrier(kTimeout).ok());
  });
}

TEST_P(CollectivesTest, BroadcastGivesRankZerosBytesToAll) {
  OnAllRanks([&](Collectives& ranks) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{5'000'000}}) {
      std::string bytes = ranks.rank() == 0 ? std::string(size, 'a') : "old content";
      ASSERT_TRUE(ranks.Broadcast(&bytes, kTimeout).ok());
      EXPECT_EQ(bytes, std::string(size, 'a'));
    }
    ASSERT_TRUE(ranks.Barrier(kTimeout).ok());
  });
}

INSTANTIATE_TEST_SUITE_P(WorldSize, CollectivesTest,
                         testing::Combine(testing::Values(2, 3), testing::Values(kGloo, kNccl)));

TEST_F(CollectivesTest, ARankThatStaysAwayIsAnErrorAtTheDeadline) {
  for (const Kind kind : {kGloo, kNccl}) {
    OnAllRanks(kind, 2, [&](Collectives& ranks) {
      if (ranks.rank() == 1) return;  // leaves: its connections close
      std::vector<float> data(1000, 1.0f);
      const absl::Time start = absl::Now();
      const absl::Status status = ranks.AllReduceSum(data.data(), 1000, absl::Seconds(2));
      EXPECT_FALSE(status.ok());
      EXPECT_NE(status.message().find("this is rank 0"), std::string::npos) << status;
      EXPECT_LT(absl::Now() - start, absl::Seconds(5));
      EXPECT_FALSE(ranks.Barrier(absl::Seconds(1)).ok());  // used up
    });
  }
}

TEST_F(CollectivesTest, ARankThatNeverComesIsAnErrorThatNamesTheMeetingPoint) {
  for (const Kind kind : {kGloo, kNccl}) {
    const auto alone = Make(kind, 1, 2, absl::StrCat("alone", kind), absl::Seconds(1));
    ASSERT_FALSE(alone.ok());
    EXPECT_NE(alone.status().message().find("learner ranks cannot meet at " + listening_.address), std::string::npos)
        << alone.status();
  }
}

TEST_F(CollectivesTest, WhenRankZeroIsGoneTheOthersDoNotWaitForTheirDeadline) {
  OnAllRanks(kNccl, 2, [&](Collectives& ranks) {
    if (ranks.rank() == 0) {
      listening_.server->Shutdown(std::chrono::system_clock::now());
      return;
    }
    float value = 1;
    const absl::Time start = absl::Now();
    const absl::Status status = ranks.AllReduceSum(&value, 1, absl::Seconds(120));
    EXPECT_NE(status.message().find("rank 0 does not answer any more"), std::string::npos) << status;
    EXPECT_LT(absl::Now() - start, absl::Seconds(20));
  });
}

TEST_F(CollectivesTest, DataOnTheDeviceIsReducedInPlace) {
  std::vector<std::shared_ptr<CommDevice>> devices = {MakeEmulatedDevice("gpu0"), MakeEmulatedDevice("gpu1")};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      auto ranks = MakeNcclCollectives({.rank = rank,
                                        .world_size = 2,
                                        .device = devices[static_cast<size_t>(rank)],
                                        .rank0_address = listening_.address,
                                        .prefix = "device",
                                        .connect_timeout = absl::Seconds(30)});
      ASSERT_TRUE(ranks.ok()) << ranks.status();
      float* const data = static_cast<float*>(*devices[static_cast<size_t>(rank)]->runtime->Allocate(40'000));
      std::fill_n(data, 10'000, 1.0f + static_cast<float>(rank));
      ASSERT_TRUE((*ranks)->AllReduceSum(data, 10'000, kTimeout).ok());
      EXPECT_EQ(std::count(data, data + 10'000, 3.0f), 10'000);
    });
  }
  for (std::thread& thread : threads) thread.join();
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
