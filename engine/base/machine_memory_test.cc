#include "engine/base/machine_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace lockstep {
namespace {

class MachineMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(root_);
    Write("/proc/meminfo", "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    800 kB\n");
  }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(MachineMemoryTest, WithoutGroupsTheMachineLimits) {
  const MachineMemory memory = ReadMachineMemory(root_);
  EXPECT_EQ(memory.total_bytes, 1000u << 10);
  EXPECT_EQ(memory.available_bytes, 800u << 10);
  EXPECT_FALSE(memory.limited_by_cgroup);
}

TEST_F(MachineMemoryTest, TheTightestGroupOnTheWayUpLimits) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/memory.max", "409600\n");
  Write("/sys/fs/cgroup/outer/memory.current", "204800\n");
  Write("/sys/fs/cgroup/outer/memory.stat", "anon 102400\ninactive_file 102400\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  const MachineMemory memory = ReadMachineMemory(root_);
  EXPECT_EQ(memory.total_bytes, 409600u);
  EXPECT_EQ(memory.available_bytes, 409600u - 102400u) << "inactive page cache can be taken back";
  EXPECT_TRUE(memory.limited_by_cgroup);
}

TEST_F(MachineMemoryTest, VersionOneGroupsCountAndNoLimitIsNone) {
  Write("/proc/self/cgroup", "9:cpu:/x\n4:memory:/job\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "200000\n");
  Write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "300000\n");
  const MachineMemory memory = ReadMachineMemory(root_);
  EXPECT_EQ(memory.total_bytes, 200000u);
  EXPECT_EQ(memory.available_bytes, 0u);
}

TEST_F(MachineMemoryTest, AGroupThatIsWiderThanTheMachineDoesNotLimit) {
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "99999999999\n");
  const MachineMemory memory = ReadMachineMemory(root_);
  EXPECT_EQ(memory.available_bytes, 800u << 10);
  EXPECT_FALSE(memory.limited_by_cgroup);
}

TEST(MachineMemoryHereTest, ThisMachineHasMemory) {
  const MachineMemory memory = ReadMachineMemory();
  EXPECT_GT(memory.available_bytes, 0u);
  EXPECT_GE(memory.total_bytes, memory.available_bytes);
}

}  // namespace
}  // namespace lockstep
