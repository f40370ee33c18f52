#include "learner/device_placement.h"

#include <algorithm>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

// The first two members of a group that share a GPU; both -1 where none do.
std::pair<int, int> FirstShared(const std::vector<int>& devices) {
  std::map<int, int> first;
  for (int i = 0; i < static_cast<int>(devices.size()); ++i) {
    const auto [it, is_new] = first.try_emplace(devices[static_cast<size_t>(i)], i);
    if (!is_new) return {it->second, i};
  }
  return {-1, -1};
}

// Of the group of an update: rank 0, then the servers.
std::string MemberName(int member) { return member == 0 ? "the learner" : absl::StrCat("rollout server ", member - 1); }

absl::Status CheckTransport(const DevicePlacement& placement, const std::string& transport) {
  std::vector<int> members = {placement.ranks.front()};
  members.insert(members.end(), placement.servers.begin(), placement.servers.end());
  if (transport == "nccl") {
    const auto [a, b] = FirstShared(members);
    if (b < 0) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        "weight_sync.transport \"nccl\" needs a GPU for the learner and for each rollout server; ", MemberName(a),
        " and ", MemberName(b), " would share CUDA device ", members[static_cast<size_t>(b)],
        "; make more GPUs visible (CUDA_VISIBLE_DEVICES), lower rollout.num_servers, or set it to \"ipc\" (all on one "
        "GPU) or \"gloo\""));
  }
  const auto other = std::find_if(members.begin(), members.end(), [&](int device) { return device != members[0]; });
  if (transport != "ipc" || other == members.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("weight_sync.transport \"ipc\" works on one GPU; the learner would use CUDA device ", members[0],
                   " and ", MemberName(static_cast<int>(other - members.begin())), " CUDA device ", *other,
                   "; make one GPU visible (CUDA_VISIBLE_DEVICES), or set it to \"nccl\" (a GPU each) or \"gloo\""));
}

}  // namespace

absl::Status CheckPlacement(const DevicePlacement& placement, const v1::RunConfig& config) {
  if (placement.updates && !placement.ranks.empty() && !placement.servers.empty()) {
    absl::Status status = CheckTransport(placement, config.weight_sync().transport());
    if (!status.ok()) return status;
  }
  const auto [a, b] = FirstShared(placement.ranks);
  if (!placement.ranks_use_nccl || b < 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("learner.world_size ", placement.ranks.size(),
                   ": gradients are summed by NCCL, which needs a GPU for each rank; ", "ranks ", a, " and ", b,
                   " would share CUDA device ", placement.ranks[static_cast<size_t>(b)],
                   "; make more GPUs visible (CUDA_VISIBLE_DEVICES), or lower learner.world_size"));
}

}  // namespace lockstep
