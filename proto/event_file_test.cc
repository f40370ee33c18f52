#include "proto/event_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "proto/crc32c.h"
#include "proto/tensorboard.pb.h"

namespace lockstep {
namespace {

std::string Hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const char c : bytes) {
    hex += kDigits[static_cast<uint8_t>(c) >> 4];
    hex += kDigits[static_cast<uint8_t>(c) & 15];
  }
  return hex;
}

std::string Folder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  std::filesystem::remove_all(folder);
  return folder;
}

std::string Bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> Files(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<tensorboard::Event> Events(const std::string& path) {
  const auto messages = ReadTfRecords(Bytes(path));
  EXPECT_TRUE(messages.ok()) << messages.status();
  std::vector<tensorboard::Event> events;
  if (!messages.ok()) return events;
  for (const std::string& message : *messages) {
    EXPECT_TRUE(events.emplace_back().ParseFromString(message));
  }
  return events;
}

// RFC 3720, B.4, and the value every CRC catalogue lists for "123456789".
TEST(Crc32cTest, HasTheValuesOfTheStandard) {
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62A8AB43u);
  std::string ascending, descending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
    descending += static_cast<char>(31 - i);
  }
  EXPECT_EQ(Crc32c(ascending), 0x46DD794Eu);
  EXPECT_EQ(Crc32c(descending), 0x113FDB5Cu);
}

// The bytes that tensorboard 2.21's RecordWriter gives (tests/golden/event_frames.py prints them):  the first event of
// a file at time 0, and a scalar.
TEST(EventFileTest, FramesHaveTheGoldenBytes) {
  tensorboard::Event version;
  version.set_file_version("brain.Event:2");
  EXPECT_EQ(Hex(TfRecord(version.SerializeAsString())),
            "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc985129");
  tensorboard::Event event;
  event.set_wall_time(1.5);
  event.set_step(7);
  auto* value = event.mutable_summary()->add_value();
  value->set_tag("train/reward");
  value->set_simple_value(0.25f);
  EXPECT_EQ(Hex(TfRecord(event.SerializeAsString())),
            "220000000000000078113dfd09000000000000f83f10072a150a130a0c747261696e2f726577617264150000803ea901eab3");
  tensorboard::Event start;
  start.set_step(3);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  EXPECT_EQ(Hex(TfRecord(start.SerializeAsString())), "06000000000000007369d53710033a020801a6fbd1b8");
}

TEST(EventFileTest, ReadsBackWhatItWrote) {
  const std::string folder = Folder("events");
  auto file = EventFile::Create(folder, 1000.5, 1);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Add(1001, 1, {{"train/reward", 0.5}, {"optim/loss_scale", 65536}}).ok());
  ASSERT_TRUE(file->Add(1002, 2, {{"train/reward", 0}}).ok());
  const auto events = Events(file->path());
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].session_log().status(), tensorboard::SessionLog::START);
  EXPECT_EQ(events[1].step(), 1);
  EXPECT_EQ(events[2].summary().value_size(), 2);
  EXPECT_EQ(events[2].summary().value(1).tag(), "optim/loss_scale");
  EXPECT_EQ(events[2].summary().value(1).simple_value(), 65536);
  EXPECT_EQ(events[3].step(), 2);
  EXPECT_EQ(events[3].wall_time(), 1002);
  EXPECT_TRUE(events[3].summary().value(0).has_simple_value());  // a 0 is a value
}

TEST(EventFileTest, ALaterFileSortsAfterTheOthersThoughTheClockWasSetBack) {
  const std::string folder = Folder("sorted");
  const auto first = EventFile::Create(folder, 2000, 1);
  const auto second = EventFile::Create(folder, 500, 9);
  const auto third = EventFile::Create(folder, 2001, std::nullopt);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok());
  EXPECT_EQ(Files(folder), (std::vector<std::string>{first->path(), second->path(), third->path()}));
  EXPECT_EQ(Events(third->path()).size(), 1u);  // no start: nothing is dropped
}

TEST(EventFileTest, ADamagedOrCutFrameIsNamed) {
  const std::string good = TfRecord("abc") + TfRecord("defg");
  ASSERT_TRUE(ReadTfRecords(good).ok());
  for (size_t cut = 1; cut < good.size(); ++cut) {
    if (cut == TfRecord("abc").size()) continue;
    EXPECT_FALSE(ReadTfRecords(good.substr(0, cut)).ok()) << cut;
  }
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_FALSE(ReadTfRecords(bad).ok()) << at;
  }
}

// The limit on a file's size stands for a disk that is full: the write stops in the middle of a frame.
TEST(EventLogTest, AFullDiskCostsTheEventsOfThatTimeAndLeavesWholeFrames) {
  const std::string folder = Folder("full");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  EventLog log(folder, 1);
  ASSERT_TRUE(log.Add(10, 1, {{"train/reward", 0.5}}).ok());
  rlimit small = before;
  small.rlim_cur = std::filesystem::file_size(Files(folder)[0]) + 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_FALSE(log.Add(11, 2, {{"train/reward", 0.5}}).ok());
  small.rlim_cur = 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_FALSE(log.Add(12, 3, {{"train/reward", 0.5}}).ok());
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_TRUE(log.Add(13, 4, {{"train/reward", 0.5}}).ok());
  const auto files = Files(folder);
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(Events(files[0]).back().step(), 1);
  const auto after = Events(files[1]);
  ASSERT_EQ(after.size(), 2u);  // version and step: what came before stays
  EXPECT_EQ(after[1].step(), 4);
}

TEST(EventLogTest, AFolderThatCannotBeMadeIsAnError) {
  const std::string folder = Folder("file");
  std::ofstream(folder) << "x";
  EventLog log(folder + "/tensorboard", 1);
  const absl::Status status = log.Add(10, 1, {{"train/reward", 0.5}});
  EXPECT_NE(status.message().find(folder), std::string_view::npos) << status;
}

}  // namespace
}  // namespace lockstep
