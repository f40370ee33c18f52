// What rank 0 tells the other ranks: train on these samples, wait on, end. One message a broadcast.
#ifndef LOCKSTEP_LEARNER_STEP_MESSAGE_H_
#define LOCKSTEP_LEARNER_STEP_MESSAGE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/collectives.h"
#include "learner/trainer.h"

namespace lockstep {

struct StepMessage {
  enum class Kind : uint32_t { kWait = 0, kTrain = 1, kSupervised = 2, kEnd = 3 };
  Kind kind = Kind::kWait;
  uint32_t updates = 1;
  std::vector<TrainSample> samples;
};

// Little-endian 32-bit words, and bytes filled up to one; every length is checked against what is left when it is read.
std::string EncodeStepMessage(const StepMessage& message);
absl::StatusOr<StepMessage> DecodeStepMessage(std::string_view bytes);

// How long another rank waits for rank 0's next message. Rank 0 sends kWait this often at least four times over.
inline constexpr absl::Duration kStepMessageTimeout = absl::Seconds(240);
inline constexpr absl::Duration kHeartbeatInterval = absl::Seconds(20);

// Ranks above 0: takes the state from rank 0, then does what it says until the end. An error ends the process.
absl::Status FollowRank0(Trainer& trainer, Collectives& collectives);

// Rank 0: keeps the other ranks waiting with a bound. Does nothing on a single rank.
class RankLeader {
 public:
  explicit RankLeader(Collectives* collectives) : collectives_(collectives) {}
  absl::Status Send(const StepMessage& message);
  // kWait, when the last message was kHeartbeatInterval ago.
  absl::Status Heartbeat();

 private:
  Collectives* const collectives_;
  absl::Time last_ = absl::InfinitePast();
};

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_STEP_MESSAGE_H_
