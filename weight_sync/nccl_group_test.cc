// Groups of the emulated NCCL (device_emulation.h) that lose members in every way, and must end in time.
#include "weight_sync/nccl_group.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/device_wait.h"

namespace lockstep {
namespace {

constexpr uint64_t kBytes = 300'001;  // more than the sockets hold

// A member on a thread of its own.
struct Member {
  int rank = 0;
  std::shared_ptr<EmulatedFaults> faults = std::make_shared<EmulatedFaults>();
  std::shared_ptr<CommDevice> device;
  std::unique_ptr<NcclGroup> group;
  StagingPool::Buffer memory;

  char* bytes() { return static_cast<char*>(memory.memory); }
  absl::Status Broadcast(absl::Duration timeout, uint64_t n = kBytes) {
    return group->Run("broadcast", absl::Now() + timeout, [&](NcclApi& nccl, void* comm, void* stream) {
      return nccl.Broadcast(memory.memory, n, comm, stream);
    });
  }
};

class NcclGroupTest : public ::testing::Test {
 protected:
  void Make(int size, bool one_gpu = false, absl::Duration abort_limit = kAbortLimit) {
    for (int rank = 0; rank < size; ++rank) {
      auto member = std::make_unique<Member>();
      member->rank = rank;
      member->device = MakeEmulatedDevice(absl::StrCat("0000:0", one_gpu ? 1 : rank, ":00.0"), member->faults);
      member->group = std::make_unique<NcclGroup>(member->device, abort_limit);
      member->memory = *member->device->staging.Take(kBytes);
      members_.push_back(std::move(member));
    }
  }
  absl::Status Join(Member& member, absl::Duration timeout = absl::Seconds(20), bool share_failures = false) {
    NcclGroupOptions options;
    options.rank = member.rank;
    options.size = static_cast<int>(members_.size());
    options.table = MakeLocalGroupTable(table_, "group");
    options.deadline = absl::Now() + timeout;
    options.share_failures = share_failures;
    return member.group->Join(options);
  }
  void OnAll(const std::function<void(Member&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& member : members_) threads.emplace_back([&body, &member] { body(*member); });
    for (std::thread& thread : threads) thread.join();
  }

  std::shared_ptr<RendezvousTable> table_ = std::make_shared<RendezvousTable>();
  std::vector<std::unique_ptr<Member>> members_;
};

TEST_F(NcclGroupTest, ABroadcastBringsRankZerosBytesToAllOfThem) {
  Make(4);
  OnAll([&](Member& member) {
    ASSERT_TRUE(Join(member).ok());
    for (const uint64_t n : {uint64_t{1}, uint64_t{4096}, kBytes}) {
      std::fill_n(member.bytes(), kBytes, member.rank == 0 ? static_cast<char>(n % 100 + 1) : 0);
      const absl::Status status = member.Broadcast(absl::Seconds(20), n);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(member.bytes()[0], static_cast<char>(n % 100 + 1));
      EXPECT_EQ(member.bytes()[n - 1], static_cast<char>(n % 100 + 1));
      if (member.rank != 0 && n < kBytes) {
        EXPECT_EQ(member.bytes()[n], 0);
      }
    }
    member.group->Finish(absl::Seconds(20));
    EXPECT_EQ(member.faults->aborts, 0);
    EXPECT_EQ(member.Broadcast(absl::Seconds(1)).code(), absl::StatusCode::kCancelled);
  });
}

TEST_F(NcclGroupTest, TwoRanksOnOneGpuAreRefusedOnAllRanksInOneLine) {
  Make(3, /*one_gpu=*/true);
  OnAll([&](Member& member) {
    const absl::Status status = Join(member);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_NE(status.message().find("ranks 0 and 1 share the GPU 0000:01:00.0"), absl::string_view::npos) << status;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
    EXPECT_EQ(member.faults->aborts, 0);  // NCCL has not been entered
  });
}

TEST_F(NcclGroupTest, AMemberThatNeverComesIsNamedBeforeNcclIsEntered) {
  Make(3);
  OnAll([&](Member& member) {
    if (member.rank == 2) return;
    const absl::Time begun = absl::Now();
    const absl::Status status = Join(member, absl::Seconds(1));
    EXPECT_FALSE(status.ok());
    if (member.rank == 0) {
      EXPECT_NE(status.message().find("rank 2 of 3 has not joined"), absl::string_view::npos) << status;
    }
    EXPECT_LT(absl::Now() - begun, absl::Seconds(3));
    EXPECT_EQ(member.faults->aborts, 0);
  });
}

TEST_F(NcclGroupTest, AMemberThatDiesBetweenTheTableAndNcclIsSeenByTheDeadlineAndTheOthersAbort) {
  Make(3);
  members_[1]->faults->never_connects = true;
  OnAll([&](Member& member) {
    const absl::Time begun = absl::Now();
    const absl::Status status = Join(member, absl::Seconds(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_NE(status.message().find(absl::StrCat("joining a NCCL group as rank ", member.rank, " of 3: connecting")),
              absl::string_view::npos)
        << status;
    EXPECT_LT(absl::Now() - begun, absl::Seconds(3));
    EXPECT_EQ(member.faults->aborts, 1);
    EXPECT_EQ(member.group->stream(), nullptr);
  });
}

TEST_F(NcclGroupTest, AMemberThatDiesInTheMiddleOfABroadcastIsSeenByTheDeadlineAndANewGroupForms) {
  for (const int victim : {0, 1, 2}) {
    table_ = std::make_shared<RendezvousTable>();
    members_.clear();
    Make(3);
    members_[static_cast<size_t>(victim)]->faults->silent_in_operation = 2;
    OnAll([&](Member& member) {
      ASSERT_TRUE(Join(member).ok());
      ASSERT_TRUE(member.Broadcast(absl::Seconds(20)).ok());
      const absl::Time begun = absl::Now();
      const absl::Status status = member.Broadcast(absl::Seconds(1));
      // A receiver that stands before the victim may have got everything; the victim and those behind it have not.
      if (member.rank == victim || victim == 0) {
        EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
      }
      EXPECT_LT(absl::Now() - begun, absl::Seconds(3));
      if (!status.ok()) {
        EXPECT_EQ(member.faults->aborts, 1);
      }
    });
    table_ = std::make_shared<RendezvousTable>();
    members_.erase(members_.begin() + victim);
    for (size_t i = 0; i < members_.size(); ++i) {
      members_[i]->rank = static_cast<int>(i);
      members_[i]->faults->silent_in_operation = 0;
      members_[i]->group = std::make_unique<NcclGroup>(members_[i]->device);
    }
    OnAll([&](Member& member) {
      ASSERT_TRUE(Join(member).ok());
      std::fill_n(member.bytes(), kBytes, member.rank == 0 ? 'x' : '-');
      ASSERT_TRUE(member.Broadcast(absl::Seconds(20)).ok());
      EXPECT_EQ(std::count(member.bytes(), member.bytes() + kBytes, 'x'), static_cast<int64_t>(kBytes));
    });
  }
}

TEST_F(NcclGroupTest, AnAsynchronousErrorEndsTheWaitAndUsesTheGroupUp) {
  Make(2);
  members_[1]->faults->error_in_operation = 1;
  OnAll([&](Member& member) {
    ASSERT_TRUE(Join(member).ok());
    const absl::Time begun = absl::Now();
    const absl::Status status = member.Broadcast(absl::Seconds(member.rank == 1 ? 60 : 1));
    if (member.rank == 1) {
      EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
      EXPECT_NE(status.message().find("broadcast: NCCL: an emulated asynchronous error"), absl::string_view::npos);
    }
    EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
    if (!status.ok()) {
      EXPECT_EQ(member.Broadcast(absl::Seconds(1)).code(), absl::StatusCode::kCancelled);
    }
  });
}

TEST_F(NcclGroupTest, AnErrorOfTheDeviceKeepsWhatItSaysOfTheWayOut) {
  absl::Status lost = absl::InternalError("a kernel failed");
  lost.SetPayload("recovery", absl::Cord("restart"));
  const std::atomic<bool> open{false};
  const absl::Status waited =
      WaitForDevice("sending", absl::Now() + absl::Seconds(20), open, [&]() -> absl::StatusOr<bool> { return lost; });
  Make(1);
  ASSERT_TRUE(Join(*members_[0]).ok());
  const absl::Status begun =
      members_[0]->group->Run("sending", absl::Now() + absl::Seconds(20), [&](NcclApi&, void*, void*) { return lost; });
  for (const absl::Status& status : {waited, begun}) {
    EXPECT_EQ(status.message(), "sending: a kernel failed");
    EXPECT_EQ(status.GetPayload("recovery"), absl::Cord("restart"));
  }
}

TEST_F(NcclGroupTest, ASlowBucketIsCutAtItsDeadline) {
  Make(2);
  for (const auto& member : members_) member->faults->delay_ms = 1500;
  OnAll([&](Member& member) {
    ASSERT_TRUE(Join(member).ok());
    const absl::Status status = member.Broadcast(absl::Milliseconds(100));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_EQ(member.faults->aborts, 1);
  });
}

TEST_F(NcclGroupTest, CloseFromAnotherThreadEndsEveryWaitSoon) {
  // 0: waiting in the table, 1: in NCCL's connection, 2: in a broadcast.
  for (const int where : {0, 1, 2}) {
    table_ = std::make_shared<RendezvousTable>();
    members_.clear();
    Make(2);
    Member& member = *members_[0];
    Member& other = *members_[1];
    if (where == 1) other.faults->never_connects = true;
    if (where == 2) other.faults->silent_in_operation = 1;
    std::thread peer([&] {
      if (where == 0) return;
      (void)Join(other, absl::Seconds(60));
      if (where == 2) (void)other.Broadcast(absl::Seconds(60));
    });
    absl::Status status;
    std::atomic<bool> inside{false};
    std::thread waiting([&] {
      inside = true;
      status = Join(member, absl::Seconds(60));
      if (status.ok()) status = member.Broadcast(absl::Seconds(60));
    });
    while (!inside) absl::SleepFor(absl::Milliseconds(1));
    absl::SleepFor(absl::Milliseconds(200));
    const absl::Time closed = absl::Now();
    member.group->Close();
    waiting.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << where << ": " << status;
    EXPECT_LT(absl::Now() - closed, absl::Seconds(2)) << where;
    EXPECT_EQ(member.faults->aborts, where == 0 ? 0 : 1) << where;
    other.group->Close();
    peer.join();
  }
}

TEST_F(NcclGroupTest, CloseAtAnyMomentNeverMeetsACallOnTheCommunicator) {
  // The emulation ends the test when it does.
  for (int round = 0; round < 40; ++round) {
    table_ = std::make_shared<RendezvousTable>();
    members_.clear();
    Make(2);
    for (const auto& member : members_) member->faults->call_us = 300;
    std::thread closer([&] {
      absl::SleepFor(absl::Microseconds(300 * round));
      for (const auto& member : members_) member->group->Close();
    });
    OnAll([&](Member& member) {
      absl::Status status = Join(member);
      while (status.ok()) status = member.Broadcast(absl::Seconds(20), 1000);
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    });
    closer.join();
  }
}

TEST_F(NcclGroupTest, AnAbortThatHangsIsLeftBehindAndTheProcessTakesNoFurtherPart) {
  Make(2, /*one_gpu=*/false, /*abort_limit=*/absl::Milliseconds(300));
  members_[0]->faults->abort_hangs = true;
  members_[1]->faults->silent_in_operation = 1;
  OnAll([&](Member& member) {
    ASSERT_TRUE(Join(member).ok());
    const absl::Time begun = absl::Now();
    EXPECT_FALSE(member.Broadcast(absl::Milliseconds(200)).ok());
    EXPECT_LT(absl::Now() - begun, absl::Seconds(2));
  });
  EXPECT_TRUE(members_[0]->device->stuck);
  EXPECT_FALSE(members_[1]->device->stuck);
  members_[0]->group = std::make_unique<NcclGroup>(members_[0]->device);
  const absl::Status refused = Join(*members_[0]);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(refused.message().find("start the process again"), absl::string_view::npos) << refused;
  members_[0]->faults->abort_hangs = false;
  while (members_[0]->device.use_count() > 2) absl::SleepFor(absl::Milliseconds(1));  // the thread that was left behind
}

TEST_F(NcclGroupTest, AMembersFailureIsToldToTheOthersWhereTheyShareThem) {
  Make(3);
  members_[2]->faults->error_in_operation = 1;
  OnAll([&](Member& member) {
    ASSERT_TRUE(Join(member, absl::Seconds(20), /*share_failures=*/true).ok());
    const absl::Time begun = absl::Now();
    float* const data = static_cast<float*>(member.memory.memory);
    const absl::Status status =
        member.group->Run("all-reduce", absl::Now() + absl::Seconds(60), [&](NcclApi& nccl, void* comm, void* stream) {
          return nccl.AllReduce(data, kBytes / sizeof(float), NcclType::kFloat, NcclReduce::kSum, comm, stream);
        });
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted) << status;
    if (member.rank != 2) {
      EXPECT_NE(status.message().find("another member failed: rank 2: all-reduce"), absl::string_view::npos) << status;
    }
    EXPECT_LT(absl::Now() - begun, absl::Seconds(5));
  });
}

}  // namespace
}  // namespace lockstep
