#include "learner/join_ranks.h"

#include <algorithm>
#include <utility>

#include "engine/base/log.h"
#include "learner/collectives_nccl.h"
#include "learner/device_engine.h"

namespace lockstep {
namespace {

constexpr char kPrefix[] = "learner-ranks";

absl::StatusOr<std::unique_ptr<Collectives>> JoinByNccl(int rank, int world_size, const std::string& rank0_address,
                                                        int process, std::shared_ptr<NcclApi> nccl) {
  const auto device = FindTrainDevice(process);
  if (!device.ok()) return device.status();
  auto runtime = MakeCudaRuntime(*device);
  if (!runtime.ok()) return runtime.status();
  NcclCollectivesOptions options;
  options.rank = rank;
  options.world_size = world_size;
  options.device = std::make_shared<CommDevice>(*std::move(runtime), std::move(nccl));
  options.rank0_address = rank0_address;
  options.prefix = kPrefix;
  return MakeNcclCollectives(options);
}

}  // namespace

bool RanksUseNccl(const v1::RunConfig& config) {
  return config.learner().world_size() > 1 && config.device() == "cuda" && LoadNccl().ok();
}

absl::StatusOr<std::unique_ptr<Collectives>> JoinRanks(const v1::RunConfig& config, int rank,
                                                       const std::string& rank0_address, int process) {
  const int world_size = std::max<int>(1, static_cast<int>(config.learner().world_size()));
  if (world_size == 1) return MakeSingleRankCollectives();
  if (config.device() == "cuda") {
    auto nccl = LoadNccl();
    if (nccl.ok()) return JoinByNccl(rank, world_size, rank0_address, process, *std::move(nccl));
    LogWarning("gradients are summed through the host: ", std::string(nccl.status().message()));
  }
  GlooCollectivesOptions options;
  options.rank = rank;
  options.world_size = world_size;
  options.rank0_address = rank0_address;
  options.prefix = kPrefix;
  return MakeGlooCollectives(options);
}

}  // namespace lockstep
