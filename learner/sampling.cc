#include "learner/sampling.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace lockstep {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(200);
// Groups handed out at once; bounds what waits in memory.
constexpr size_t kMaxOutstanding = 512;

}  // namespace

v1::Group MakeGroupRequest(const v1::RunConfig& config, const std::string& run_id, uint64_t group_id,
                           const std::vector<int32_t>& prompt, const std::vector<int32_t>& stop_token_ids) {
  v1::Group group;
  group.set_run_id(run_id);
  group.set_group_id(group_id);
  group.set_num_samples(config.rollout().n());
  group.mutable_prompt_token_ids()->Assign(prompt.begin(), prompt.end());
  v1::SamplingParams* sampling = group.mutable_sampling();
  sampling->set_temperature(config.rollout().temperature());
  sampling->set_top_p(config.rollout().top_p());
  sampling->set_top_k(config.rollout().top_k());
  sampling->set_max_tokens(config.rollout().max_tokens());
  sampling->mutable_stop_token_ids()->Assign(stop_token_ids.begin(), stop_token_ids.end());
  group.set_seed(config.seed());
  return group;
}

absl::Status SampleGroups(const GroupSampling& sampling) {
  const std::vector<Problem>& problems = *sampling.problems;
  size_t submitted = 0, taken = 0;
  while (taken < problems.size()) {
    if (absl::Status status = sampling.between(taken); !status.ok()) return status;
    for (; submitted < problems.size() && submitted - taken < kMaxOutstanding; ++submitted) {
      sampling.rollouts->Submit(sampling.make(submitted));
    }
    auto group = sampling.rollouts->Next(sampling.rewards->pending() > 0 ? kRewardPoll : kPoll);
    if (!group.ok() && !absl::IsDeadlineExceeded(group.status())) return group.status();
    if (group.ok()) {
      const uint64_t index = group->group_id - sampling.first_group_id;  // wraps for smaller ids
      if (index < problems.size()) {
        sampling.rewards->Add(*std::move(group), problems[index]);
      } else if (!sampling.take_other) {
        return absl::InternalError(absl::StrCat("group ", group->group_id, " was never asked for"));
      } else if (absl::Status status = sampling.take_other(*std::move(group)); !status.ok()) {
        return status;
      }
    }
    while (std::optional<SampleGroup> scored = sampling.rewards->Next(absl::ZeroDuration())) {
      const size_t index = scored->group_id - sampling.first_group_id;
      if (absl::Status status = sampling.take(index, *std::move(scored)); !status.ok()) return status;
      ++taken;
    }
  }
  return absl::OkStatus();
}

}  // namespace lockstep
