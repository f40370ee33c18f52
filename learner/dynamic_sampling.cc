#include "learner/dynamic_sampling.h"

#include <algorithm>

namespace lockstep {

uint64_t ExtraGroupsPerStep(const v1::RunConfig& config) {
  if (!config.algorithm().dynamic_sampling()) return 0;
  const uint64_t batches = std::max<uint32_t>(1, config.algorithm().dynamic_sampling_max_batches());
  return (batches - 1) * config.trainer().prompts_per_step();
}

void MarkWithoutSignal(SampleGroup* group) {
  const Sample* first = nullptr;
  for (const Sample& sample : group->samples) {
    if (!sample.dropped_reason.empty()) continue;
    if (first != nullptr && sample.reward != first->reward) return;
    if (first == nullptr) first = &sample;
  }
  for (Sample& sample : group->samples) {
    if (sample.dropped_reason.empty()) sample.dropped_reason = kNoSignal;
  }
}

bool HasNoSignal(const SampleGroup& group) {
  return std::any_of(group.samples.begin(), group.samples.end(),
                     [](const Sample& sample) { return sample.dropped_reason == kNoSignal; });
}

bool IsUsable(const SampleGroup& group) {
  return std::any_of(group.samples.begin(), group.samples.end(),
                     [](const Sample& sample) { return sample.dropped_reason.empty(); });
}

}  // namespace lockstep
