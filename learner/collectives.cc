#include "learner/collectives.h"

namespace lockstep {
namespace {

class SingleRank : public Collectives {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  absl::Status AllReduceSum(float*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::Status AllReduceSum(double*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::Status AllReduceMax(double*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::StatusOr<bool> AllAgree(bool value, absl::Duration) override { return value; }
  absl::Status Broadcast(std::string*, absl::Duration) override { return absl::OkStatus(); }
  absl::Status Broadcast(float*, int64_t, absl::Duration) override { return absl::OkStatus(); }
  absl::Status Barrier(absl::Duration) override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<Collectives> MakeSingleRankCollectives() { return std::make_unique<SingleRank>(); }

}  // namespace lockstep
