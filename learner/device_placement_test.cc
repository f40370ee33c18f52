#include "learner/device_placement.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

v1::RunConfig Config(const std::string& transport) {
  v1::RunConfig config;
  config.mutable_weight_sync()->set_transport(transport);
  return config;
}

// One line that has all of `parts`.
void ExpectRefused(const absl::Status& status, const std::vector<std::string>& parts) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  const std::string text(status.message());
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "': " << text;
}

TEST(DevicePlacementTest, NcclNeedsAGpuForTheLearnerAndForEachServer) {
  const v1::RunConfig nccl = Config("nccl");
  EXPECT_TRUE(CheckPlacement({.ranks = {0}, .servers = {1, 2}, .updates = true}, nccl).ok());
  ExpectRefused(CheckPlacement({.ranks = {0}, .servers = {0}, .updates = true}, nccl),
                {"weight_sync.transport \"nccl\"", "the learner and rollout server 0 would share CUDA device 0",
                 "CUDA_VISIBLE_DEVICES", "\"ipc\""});
  ExpectRefused(CheckPlacement({.ranks = {0}, .servers = {1, 1}, .updates = true}, nccl),
                {"rollout server 0 and rollout server 1 would share CUDA device 1"});
  // Ranks above 0 take no part in an update.
  EXPECT_TRUE(CheckPlacement({.ranks = {0, 1}, .servers = {1}, .updates = true}, nccl).ok());
}

TEST(DevicePlacementTest, IpcNeedsOneGpuForAll) {
  const v1::RunConfig ipc = Config("ipc");
  EXPECT_TRUE(CheckPlacement({.ranks = {0}, .servers = {0, 0}, .updates = true}, ipc).ok());
  ExpectRefused(CheckPlacement({.ranks = {0}, .servers = {0, 1}, .updates = true}, ipc),
                {"weight_sync.transport \"ipc\" works on one GPU",
                 "the learner would use CUDA device 0 and rollout server 1 CUDA device 1", "\"nccl\""});
}

TEST(DevicePlacementTest, RanksThatSumByNcclHaveAGpuEach) {
  const v1::RunConfig gloo = Config("gloo");
  EXPECT_TRUE(CheckPlacement({.ranks = {0, 1}, .servers = {0}, .updates = true, .ranks_use_nccl = true}, gloo).ok());
  EXPECT_TRUE(CheckPlacement({.ranks = {0, 0}, .servers = {0}, .updates = true}, gloo).ok());  // through the host
  ExpectRefused(CheckPlacement({.ranks = {0, 1, 0}, .updates = true, .ranks_use_nccl = true}, gloo),
                {"learner.world_size 3", "ranks 0 and 2 would share CUDA device 0"});
}

TEST(DevicePlacementTest, WithoutUpdatesOrServersOfItsOwnARunHasNoGroupToCheck) {
  for (const char* transport : {"nccl", "ipc"}) {
    EXPECT_TRUE(CheckPlacement({.ranks = {0}, .servers = {0, 1}, .updates = false}, Config(transport)).ok());
    EXPECT_TRUE(CheckPlacement({.ranks = {0}, .updates = true}, Config(transport)).ok());
    EXPECT_TRUE(CheckPlacement({.servers = {0, 0, 1}, .updates = true}, Config(transport)).ok());
  }
}

}  // namespace
}  // namespace lockstep
