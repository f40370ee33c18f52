// Dynamic sampling (Yu et al. 2025, DAPO section 3.2): a group whose samples all have the same reward has no advantage
// and teaches nothing; the step asks further groups in its place, up to a bound.
//
// Further groups of step s are X = (dynamic_sampling_max_batches - 1) P ids of its own, far above those of the data
// order, and their problems come from an order of their own. They are asked in rounds: as many as are missing, and the
// next round only when all of them are in. Which groups a step has is then a function of what the groups contain, not
// of when they came; a resumed step finds the same ones in the ledger.
#ifndef LOCKSTEP_LEARNER_DYNAMIC_SAMPLING_H_
#define LOCKSTEP_LEARNER_DYNAMIC_SAMPLING_H_

#include <cstdint>

#include "learner/trajectory.h"
#include "proto/run_config.pb.h"

namespace lockstep {

inline constexpr uint64_t kFirstExtraGroup = uint64_t{1} << 61;
// Sample::dropped_reason of the samples of a group without an advantage; their rewards stand.
inline constexpr char kNoSignal[] = "no_signal";

// X; 0 without dynamic sampling.
uint64_t ExtraGroupsPerStep(const v1::RunConfig& config);
// Marks the samples of a scored group with kNoSignal where all that are not dropped have one reward.
void MarkWithoutSignal(SampleGroup* group);
// MarkWithoutSignal found it so.
bool HasNoSignal(const SampleGroup& group);
// At least one sample is not dropped.
bool IsUsable(const SampleGroup& group);

}  // namespace lockstep

#endif  // LOCKSTEP_LEARNER_DYNAMIC_SAMPLING_H_
