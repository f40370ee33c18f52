#include "weight_sync/gloo_group.h"

#include <gloo/allreduce.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "proto/channel.h"
#include "weight_sync/rendezvous_store.h"

namespace lockstep {
namespace {

struct TableServer {
  std::shared_ptr<RendezvousTable> table = std::make_shared<RendezvousTable>();
  RendezvousService service{table};
  ListeningServer listening;
  TableServer() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service);
    absl::StatusOr<ListeningServer> started = StartServer(builder, "127.0.0.1", 0);
    EXPECT_TRUE(started.ok()) << started.status();
    if (started.ok()) listening = *std::move(started);
  }
};

TEST(RendezvousTableTest, KeepsItsBounds) {
  RendezvousTable table;
  EXPECT_EQ(table.Set("", "v").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(table.Set("k", std::string(RendezvousTable::kMaxValueBytes + 1, 'x')).code(),
            absl::StatusCode::kInvalidArgument);
  for (size_t i = 0; i < RendezvousTable::kMaxKeys; ++i) {
    ASSERT_TRUE(table.Set("group" + std::to_string(i % 2) + "/" + std::to_string(i), "v").ok());
  }
  EXPECT_EQ(table.Set("one more", "v").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(table.Set("group0/0", "replaced").ok());
  table.ErasePrefix("group0/");
  EXPECT_EQ(table.size(), RendezvousTable::kMaxKeys / 2);
  EXPECT_TRUE(table.Set("one more", "v").ok());
}

TEST(RendezvousTableTest, WaitersEndByValueDeadlineCancelAndClose) {
  RendezvousTable table;
  EXPECT_EQ(table.Get("absent", absl::Milliseconds(20)).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(table.Get("absent", absl::Seconds(60), [] { return true; }).status().code(), absl::StatusCode::kCancelled);
  std::thread writer([&] { EXPECT_TRUE(table.Set("late", "value").ok()); });
  EXPECT_EQ(table.Get("late", absl::Seconds(60)).value(), "value");
  writer.join();
  std::thread closer([&] { table.Close(); });
  EXPECT_EQ(table.Get("absent", absl::Seconds(60)).status().code(), absl::StatusCode::kCancelled);
  closer.join();
}

TEST(GlooGroupTest, MembersMeetThroughTheRpcStoreAndReduce) {
  TableServer server;
  constexpr int kSize = 3;
  std::vector<float> sums(kSize, 0.0f);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kSize; ++rank) {
    threads.emplace_back([&, rank] {
      RendezvousOptions rendezvous{.prefix = "reduce-1", .timeout = absl::Seconds(20)};
      std::unique_ptr<gloo::rendezvous::Store> store =
          rank == 0 ? MakeLocalRendezvousStore(server.table, rendezvous)
                    : MakeGrpcRendezvousStore(MakeChannel(server.listening.address), rendezvous);
      GlooGroupOptions options;
      options.rank = rank;
      options.size = kSize;
      options.route_to = server.listening.address;
      options.timeout = absl::Seconds(20);
      const auto context = ConnectGlooGroup(options, *store);
      ASSERT_TRUE(context.ok()) << context.status();
      float value = static_cast<float>(rank + 1);
      const absl::Status status = CatchGloo("all-reduce", [&] {
        gloo::AllreduceOptions reduce(*context);
        reduce.setOutput(&value, 1);
        reduce.setReduceFunction([](void* out, const void* a, const void* b, size_t n) {
          for (size_t i = 0; i < n; ++i) {
            static_cast<float*>(out)[i] = static_cast<const float*>(a)[i] + static_cast<const float*>(b)[i];
          }
        });
        gloo::allreduce(reduce);
      });
      EXPECT_TRUE(status.ok()) << status;
      sums[static_cast<size_t>(rank)] = value;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sums, std::vector<float>(kSize, 6.0f));
}

TEST(GlooGroupTest, AMissingMemberIsADeadlineAndNotAHang) {
  auto table = std::make_shared<RendezvousTable>();
  GlooGroupOptions options;
  options.size = 2;
  options.timeout = absl::Milliseconds(500);
  const absl::Time begin = absl::Now();
  const auto store = MakeLocalRendezvousStore(table, {.prefix = "alone", .timeout = absl::Milliseconds(500)});
  const auto context = ConnectGlooGroup(options, *store);
  EXPECT_EQ(context.status().code(), absl::StatusCode::kDeadlineExceeded) << context.status();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

TEST(GlooGroupTest, ACancelledMemberStopsWaiting) {
  auto table = std::make_shared<RendezvousTable>();
  GlooGroupOptions options;
  options.size = 2;
  std::atomic<bool> cancelled{false};
  const auto store = MakeLocalRendezvousStore(
      table, {.prefix = "cancelled", .timeout = absl::Seconds(60), .cancelled = [&] { return cancelled.load(); }});
  std::thread canceller([&] {
    // Rank 0 has published its address once a key is there.
    while (table->size() == 0) absl::SleepFor(absl::Milliseconds(1));
    cancelled = true;
  });
  const absl::Time begin = absl::Now();
  EXPECT_FALSE(ConnectGlooGroup(options, *store).ok());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
  canceller.join();
}

}  // namespace
}  // namespace lockstep
