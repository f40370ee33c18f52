// The transports of GPUs over the emulated device: bytes, deadlines, Close. The protocol over them: publisher_test and
// process_test.
#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "weight_sync/device_emulation.h"
#include "weight_sync/transport_ipc.h"
#include "weight_sync/transport_nccl.h"

namespace lockstep {
namespace {

constexpr uint64_t kBytes = 200'003;

struct End {
  int rank = 0;
  std::shared_ptr<EmulatedFaults> faults = std::make_shared<EmulatedFaults>();
  std::shared_ptr<CommDevice> device;
  std::unique_ptr<WeightTransport> transport;
};

class DeviceTransportTest : public ::testing::TestWithParam<std::string> {
 protected:
  // NCCL: a GPU each. IPC: one.
  void Make(int size, const std::string& kind) {
    ends_.clear();
    table_ = std::make_shared<RendezvousTable>();
    for (int rank = 0; rank < size; ++rank) {
      auto end = std::make_unique<End>();
      end->rank = rank;
      end->device = MakeEmulatedDevice(absl::StrCat("0000:0", kind == "nccl" ? rank : 1, ":00.0"), end->faults);
      end->transport = MakeFor(kind, end->device);
      ends_.push_back(std::move(end));
    }
  }
  std::unique_ptr<WeightTransport> MakeFor(const std::string& kind, const std::shared_ptr<CommDevice>& device) {
    const auto table = MakeLocalGroupTable(table_, "group");
    return kind == "nccl" ? MakeNcclTransport(device, table) : MakeIpcTransport(device, table);
  }
  absl::Status Join(End& end, absl::Duration timeout = absl::Seconds(20)) {
    return end.transport->Join({.rank = end.rank, .size = static_cast<int>(ends_.size()), .route_to = ""},
                               absl::Now() + timeout);
  }
  void OnAll(const std::function<void(End&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& end : ends_) threads.emplace_back([&body, &end] { body(*end); });
    for (std::thread& thread : threads) thread.join();
  }
  static std::vector<char> Content(uint64_t bucket, uint64_t bytes) {
    std::vector<char> content(bytes);
    for (uint64_t i = 0; i < bytes; ++i) content[i] = static_cast<char>(i * 7 + i / 251 + bucket * 13);
    return content;
  }

  std::shared_ptr<RendezvousTable> table_;
  std::vector<std::unique_ptr<End>> ends_;
};

TEST_P(DeviceTransportTest, BucketsArriveFromAndInMemoryOfEitherSide) {
  for (const bool device_source : {false, true}) {
    Make(3, GetParam());
    OnAll([&](End& end) {
      ASSERT_TRUE(Join(end).ok());
      // Rank 1 receives on the host, rank 2 on the device.
      const bool on_device = end.rank == 0 ? device_source : end.rank == 2;
      const absl::Time deadline = absl::Now() + absl::Seconds(20);
      for (uint64_t bucket = 0; bucket < 7; ++bucket) {
        const uint64_t bytes = bucket == 3   ? 3 * kBytes
                               : bucket == 6 ? 1
                                             : kBytes;  // one row may be longer than a bucket
        const std::vector<char> expected = Content(bucket, bytes);
        std::vector<char> host(bytes);
        void* const device = *end.device->runtime->Allocate(bytes);
        void* const memory = on_device ? device : host.data();
        if (end.rank == 0) std::copy(expected.begin(), expected.end(), static_cast<char*>(memory));
        const absl::Status status = end.rank == 0 ? end.transport->Send(bucket, memory, bytes, deadline)
                                                  : end.transport->Receive(bucket, memory, bytes, deadline);
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), static_cast<char*>(memory))) << "bucket " << bucket;
        end.device->runtime->Free(device);
      }
    });
    // The table does not grow with the buckets.
    EXPECT_LT(table_->size(), 12u);
  }
}

TEST_P(DeviceTransportTest, StagingIsUsedAgainByTheNextGroup) {
  Make(2, GetParam());
  size_t free_before = 0;
  for (int update = 0; update < 3; ++update) {
    table_ = std::make_shared<RendezvousTable>();
    for (const auto& end : ends_) end->transport = MakeFor(GetParam(), end->device);
    OnAll([&](End& end) {
      ASSERT_TRUE(Join(end).ok());
      std::vector<char> bytes(kBytes);
      for (uint64_t bucket = 0; bucket < 4; ++bucket) {
        const absl::Time deadline = absl::Now() + absl::Seconds(20);
        ASSERT_TRUE((end.rank == 0 ? end.transport->Send(bucket, bytes.data(), kBytes, deadline)
                                   : end.transport->Receive(bucket, bytes.data(), kBytes, deadline))
                        .ok());
      }
    });
    for (const auto& end : ends_) end->transport = nullptr;
    if (update == 0) free_before = ends_[0]->device->staging.num_free();
    EXPECT_GT(free_before, 0u);
    EXPECT_EQ(ends_[0]->device->staging.num_free(), free_before);
  }
}

TEST_P(DeviceTransportTest, AReceiverThatStopsCostsTheSenderOneDeadlineAndTheObject) {
  Make(2, GetParam());
  OnAll([&](End& end) {
    ASSERT_TRUE(Join(end).ok());
    std::vector<char> bytes(kBytes);
    if (end.rank == 1) {
      ASSERT_TRUE(end.transport->Receive(0, bytes.data(), kBytes, absl::Now() + absl::Seconds(20)).ok());
      return;  // takes no further bucket
    }
    absl::Status status;
    uint64_t bucket = 0;
    const absl::Time begun = absl::Now();
    for (; status.ok() && bucket < 10; ++bucket) {
      status = end.transport->Send(bucket, bytes.data(), kBytes, absl::Now() + absl::Seconds(1));
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_LE(bucket, 4u);  // NCCL: the second; IPC: the fourth, when the first slot is not free
    EXPECT_NE(status.message().find("sending bucket"), absl::string_view::npos);
    EXPECT_LT(absl::Now() - begun, absl::Seconds(4));
    EXPECT_EQ(end.transport->Send(bucket, bytes.data(), kBytes, absl::Now() + absl::Seconds(1)).code(),
              absl::StatusCode::kCancelled);
  });
}

TEST_P(DeviceTransportTest, ASenderThatStopsCostsTheReceiversOneDeadline) {
  Make(3, GetParam());
  OnAll([&](End& end) {
    ASSERT_TRUE(Join(end).ok());
    if (end.rank == 0) return;
    std::vector<char> bytes(kBytes);
    const absl::Time begun = absl::Now();
    const absl::Status status = end.transport->Receive(0, bytes.data(), kBytes, absl::Now() + absl::Seconds(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_NE(status.message().find("receiving bucket 0"), absl::string_view::npos);
    EXPECT_LT(absl::Now() - begun, absl::Seconds(4));
  });
}

TEST_P(DeviceTransportTest, CloseFromAnotherThreadEndsJoinSendAndReceive) {
  for (const bool joined : {false, true}) {
    for (const int rank : {0, 1}) {
      Make(2, GetParam());
      End& end = *ends_[static_cast<size_t>(rank)];
      if (joined) OnAll([&](End& each) { ASSERT_TRUE(Join(each).ok()); });
      absl::Status status;
      std::thread waiting([&] {
        std::vector<char> bytes(kBytes);
        status = joined ? absl::OkStatus() : Join(end, absl::Seconds(60));
        for (uint64_t bucket = 0; status.ok(); ++bucket) {
          const absl::Time deadline = absl::Now() + absl::Seconds(60);
          status = rank == 0 ? end.transport->Send(bucket, bytes.data(), kBytes, deadline)
                             : end.transport->Receive(bucket, bytes.data(), kBytes, deadline);
        }
      });
      absl::SleepFor(absl::Milliseconds(100));
      const absl::Time closed = absl::Now();
      end.transport->Close();
      end.transport->Close();
      waiting.join();
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << joined << rank << ": " << status;
      EXPECT_LT(absl::Now() - closed, absl::Seconds(2));
    }
  }
}

TEST_P(DeviceTransportTest, ASnapshotsImageIsSentInPlaceAndFinishWaitsForEveryMember) {
  Make(3, GetParam());
  OnAll([&](End& end) {
    ASSERT_TRUE(Join(end).ok());
    constexpr uint64_t kBuckets = 9;
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    const absl::StatusOr<StagingPool::Buffer> image = end.device->images.Take(kBuckets * kBytes);
    ASSERT_TRUE(image.ok());
    for (uint64_t bucket = 0; bucket < kBuckets; ++bucket) {
      char* const memory = static_cast<char*>(image->memory) + bucket * kBytes;
      const std::vector<char> expected = Content(bucket, kBytes);
      if (end.rank == 0) std::copy(expected.begin(), expected.end(), memory);
      const absl::Status status = end.rank == 0 ? end.transport->Send(bucket, memory, kBytes, deadline)
                                                : end.transport->Receive(bucket, memory, kBytes, deadline);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), memory)) << "bucket " << bucket;
    }
    if (end.rank == 0) {
      EXPECT_TRUE(end.transport->Finish(deadline).ok());
    }
    EXPECT_EQ(end.device->staging.num_made(), 0u);
  });
}

TEST_F(DeviceTransportTest, AReceiverThatStopsBeforeTheLastBucketsIsSeenByFinish) {
  Make(2, "ipc");
  OnAll([&](End& end) {
    ASSERT_TRUE(Join(end).ok());
    const absl::StatusOr<StagingPool::Buffer> image = end.device->images.Take(3 * kBytes);
    ASSERT_TRUE(image.ok());
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    if (end.rank == 1) {
      ASSERT_TRUE(end.transport->Receive(0, image->memory, kBytes, deadline).ok());
      return;
    }
    for (uint64_t bucket = 0; bucket < 3; ++bucket) {
      ASSERT_TRUE(
          end.transport->Send(bucket, static_cast<char*>(image->memory) + bucket * kBytes, kBytes, deadline).ok());
    }
    const absl::Status status = end.transport->Finish(absl::Now() + absl::Seconds(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_NE(status.message().find("rank 1 has not taken bucket 1"), absl::string_view::npos) << status;
  });
}

INSTANTIATE_TEST_SUITE_P(Kind, DeviceTransportTest, ::testing::Values("nccl", "ipc"),
                         [](const auto& info) { return info.param; });

TEST_F(DeviceTransportTest, IpcBetweenTwoGpusIsRefusedInOneLine) {
  Make(2, "nccl");  // a GPU each
  for (const auto& end : ends_) end->transport = MakeFor("ipc", end->device);
  OnAll([&](End& end) {
    const absl::Status status = Join(end);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(status.message().find("rank 1 is on the GPU 0000:01:00.0 and rank 0 on 0000:00:00.0"),
              absl::string_view::npos)
        << status;
  });
}

TEST_F(DeviceTransportTest, AMessageThatIsNoneIsRefused) {
  for (const std::string& message :
       {std::string(), std::string("x"), std::string("200003 "), std::string("200003 999 abc"),
        std::string("200003 18446744073709551615 abc"), std::string("1 2 abcd"), std::string("200003 3 abcdef"),
        std::string("200003 0 200003 3 abcdef"), std::string("200003 1 200003 3 abc"),
        std::string("200003 18446744073709551615 200003 3 abc")}) {
    Make(2, "ipc");
    OnAll([&](End& end) {
      ASSERT_TRUE(Join(end).ok());
      if (end.rank == 0) {
        ASSERT_TRUE(table_->Set("group/bucket/0", message).ok());
        return;
      }
      std::vector<char> bytes(kBytes);
      const absl::Status status = end.transport->Receive(0, bytes.data(), kBytes, absl::Now() + absl::Seconds(20));
      EXPECT_FALSE(status.ok()) << message;
      EXPECT_FALSE(absl::IsDeadlineExceeded(status)) << status;
    });
  }
}

}  // namespace
}  // namespace lockstep
