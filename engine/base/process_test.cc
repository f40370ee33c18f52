#include "engine/base/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <future>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

std::string TempDir() {
  std::string pattern = ::testing::TempDir() + "/process_test.XXXXXX";
  return mkdtemp(pattern.data());
}

TEST(StopSignal, TurnsSigtermIntoData) {
  StopSignal stop;
  std::promise<std::string> told;
  stop.OnStop([&](const std::string& reason) { told.set_value(reason); });
  EXPECT_FALSE(stop.WaitFor(absl::Milliseconds(1)));
  ASSERT_EQ(kill(getpid(), SIGTERM), 0);
  EXPECT_TRUE(stop.WaitFor(absl::Seconds(10)));
  EXPECT_TRUE(stop());
  EXPECT_EQ(stop.reason(), "SIGTERM");
  EXPECT_EQ(told.get_future().get(), "SIGTERM");
}

TEST(StopSignal, TellsTheFirstReasonOnceAndLateCallbacksAtOnce) {
  StopSignal stop;
  int calls = 0;
  stop.OnStop([&](const std::string&) { ++calls; });
  stop.Request("drain");
  stop.Request("again");
  std::string late;
  stop.OnStop([&](const std::string& reason) { late = reason; });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(late, "drain");
}

TEST(StopSignalDeathTest, ASecondSignalEndsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        StopSignal stop;
        kill(getpid(), SIGTERM);
        stop.Wait();
        kill(getpid(), SIGINT);
        pause();
      },
      ::testing::ExitedWithCode(128 + SIGINT), "");
}

TEST(ParentWatch, CallsBackWhenTheProcessEnds) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    pause();
    _exit(0);
  }
  std::promise<void> gone;
  ParentWatch watch(child, [&] { gone.set_value(); });
  auto future = gone.get_future();
  EXPECT_EQ(future.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST(ParentWatch, CallsBackAtOnceForAProcessThatIsGone) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  std::promise<void> gone;
  ParentWatch watch(child, [&] { gone.set_value(); });
  EXPECT_EQ(gone.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
}

TEST(WriteFileAtomically, ReplacesTheFileAndLeavesNoTemporary) {
  const std::string dir = TempDir();
  ASSERT_TRUE(WriteFileAtomically(dir + "/f", "one").ok());
  ASSERT_TRUE(WriteFileAtomically(dir + "/f", std::string(100000, 'x')).ok());
  EXPECT_EQ(ReadFile(dir + "/f").value(), std::string(100000, 'x'));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), std::filesystem::directory_iterator()), 1);
}

TEST(WriteFileAtomically, AFailedWriteLeavesTheOldFileAndNoTemporary) {
  const std::string dir = TempDir();
  ASSERT_TRUE(WriteFileAtomically(dir + "/f", "old").ok());
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);  // write then fails with EFBIG, half done, as on a full disk
  const rlimit small = {4096, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = WriteFileAtomically(dir + "/f", std::string(100000, 'x'));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot write " + dir + "/f.tmp."));
  EXPECT_EQ(ReadFile(dir + "/f").value(), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), std::filesystem::directory_iterator()), 1);
}

TEST(WriteFileAtomically, ALinkStaysALink) {
  const std::string dir = TempDir();
  ASSERT_TRUE(WriteFileAtomically(dir + "/f", "old").ok());
  ASSERT_EQ(symlink("f", (dir + "/link").c_str()), 0);
  ASSERT_TRUE(WriteFileAtomically(dir + "/link", "new").ok());
  EXPECT_TRUE(std::filesystem::is_symlink(dir + "/link"));
  EXPECT_EQ(ReadFile(dir + "/f").value(), "new");
}

TEST(WriteFileAtomically, APipeIsWrittenToAndNotReplaced) {
  const std::string dir = TempDir();
  ASSERT_EQ(mkfifo((dir + "/pipe").c_str(), 0600), 0);
  const int reader = open((dir + "/pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  ASSERT_TRUE(WriteFileAtomically(dir + "/pipe", "hello").ok());
  char bytes[8] = {};
  EXPECT_EQ(read(reader, bytes, sizeof(bytes)), 5);
  EXPECT_STREQ(bytes, "hello");
  close(reader);
  EXPECT_TRUE(std::filesystem::is_fifo(dir + "/pipe"));
}

TEST(WriteFileAtomically, AFullDiskIsResourceExhausted) {
  EXPECT_EQ(ErrnoStatus(ENOSPC, "cannot write", "/x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoStatus(ENOSPC, "cannot write", "/x").message(), "cannot write /x: No space left on device");
}

TEST(ReadFile, RefusesWhatIsTooLargeOrNoFile) {
  const std::string dir = TempDir();
  ASSERT_TRUE(WriteFileAtomically(dir + "/f", "12345").ok());
  EXPECT_EQ(ReadFile(dir + "/f", 4).status().message(), dir + "/f: is 5 bytes long, the limit is 4");
  EXPECT_EQ(ReadFile(dir + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadFile(dir).status().message(), dir + ": is not a regular file");
}

}  // namespace
}  // namespace lockstep
