#include "engine/kernels/cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace lockstep {
namespace {

TEST(ThreadPool, RunsTheBodyOnceOnEveryThread) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    std::vector<int> calls(static_cast<size_t>(threads), 0);
    for (int round = 0; round < 2000; ++round) {
      pool.Run([&](int thread, int count) {
        ASSERT_EQ(count, threads);
        ++calls[static_cast<size_t>(thread)];  // no data race: Run's end orders rounds
      });
    }
    for (const int count : calls) EXPECT_EQ(count, 2000);
  }
}

TEST(ThreadPool, TheCallerIsThreadZeroAndOneThreadStartsNoOther) {
  ThreadPool pool(3);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> on_caller{0};
  pool.Run([&](int thread, int) {
    if (std::this_thread::get_id() == caller) {
      EXPECT_EQ(thread, 0);
      ++on_caller;
    }
  });
  EXPECT_EQ(on_caller, 1);
  ThreadPool single(1);
  single.Run([&](int, int) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST(ThreadPool, WorkAfterALongPauseIsSeen) {
  // The pause is longer than the spin, so the workers sleep in the kernel; joining shows that they woke.
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> sum{0};
    pool.Run([&](int thread, int) { sum += thread + 1; });
    EXPECT_EQ(sum, 3);
  }
}

TEST(ThreadPool, ManyPoolsOnFewCoresFinish) {
  std::vector<std::thread> users;
  std::atomic<int64_t> total{0};
  for (int i = 0; i < 8; ++i) {
    users.emplace_back([&] {
      ThreadPool pool(3);
      for (int round = 0; round < 200; ++round) pool.Run([&](int, int) { ++total; });
    });
  }
  for (std::thread& user : users) user.join();
  EXPECT_EQ(total, 8 * 3 * 200);
}

TEST(StaticSplit, CoversTheRangeOnceInOrderInWholeGrains) {
  for (const int64_t n : {0, 1, 5, 16, 100}) {
    for (const int64_t grain : {1, 4, 16}) {
      for (const int threads : {1, 2, 3, 8}) {
        int64_t at = 0;
        for (int thread = 0; thread < threads; ++thread) {
          const auto [begin, end] = StaticSplit(n, grain, thread, threads);
          EXPECT_EQ(begin, at);
          EXPECT_LE(begin, end);
          EXPECT_TRUE(end == n || end % grain == 0) << end;
          at = end;
        }
        EXPECT_EQ(at, n);
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
