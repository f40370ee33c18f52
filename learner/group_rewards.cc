#include "learner/group_rewards.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/digest.h"
#include "engine/base/log.h"

namespace lockstep {
namespace {

bool NeedsReward(const Sample& sample) {
  return sample.dropped_reason.empty() && sample.finish_reason != v1::FINISH_REASON_LENGTH;
}

void SetReward(uint64_t group_id, const absl::StatusOr<double>& reward, Sample* sample) {
  if (reward.ok() && std::isfinite(*reward)) {
    sample->reward = *reward;
    return;
  }
  sample->dropped_reason = "reward";
  LogWarning("group ", group_id, " sample ", sample->sample_index, " has no reward and is dropped: ",
             reward.ok() ? "it is not finite" : std::string(reward.status().message()));
}

// Equal for equal responses alone: a group that is sampled again after a restart may come out otherwise.
std::string SampleId(const std::string& run_id, uint64_t group_id, uint32_t sample_index, const std::string& response) {
  return absl::StrCat(run_id, "/", group_id, "/", sample_index, "/",
                      DigestHex(Digest(response.data(), response.size())));
}

}  // namespace

void ScoreGroup(RewardKind kind, const Problem& problem, const Tokenizer& tokenizer, SampleGroup* group) {
  for (Sample& sample : group->samples) {
    if (!NeedsReward(sample)) continue;
    SetReward(group->group_id,
              Score(kind, tokenizer.Decode(sample.tokens, /*skip_special_tokens=*/true), problem.answer), &sample);
  }
}

absl::StatusOr<std::unique_ptr<GroupRewards>> GroupRewards::Create(const v1::DataConfig& data,
                                                                   const std::string& run_id,
                                                                   const Tokenizer* tokenizer,
                                                                   MetricsRegistry* metrics) {
  const auto kind = ParseRewardKind(data.reward());
  if (!kind.ok()) return kind.status();
  std::unique_ptr<GroupRewards> rewards(new GroupRewards(*kind, run_id, tokenizer));
  if (*kind != RewardKind::kService) return rewards;
  RewardClientOptions options;
  options.address = data.reward_address();
  options.run_id = run_id;
  if (data.reward_timeout_seconds() > 0) options.timeout = absl::Seconds(data.reward_timeout_seconds());
  rewards->client_ = std::make_unique<RewardClient>(options, metrics);
  if (absl::Status status = rewards->client_->Connect(); !status.ok()) return status;
  return rewards;
}

void GroupRewards::Add(SampleGroup group, const Problem& problem) {
  if (client_ == nullptr) {
    ScoreGroup(kind_, problem, *tokenizer_, &group);
    scored_.push_back(std::move(group));
    return;
  }
  std::vector<v1::RewardSample> samples;
  const std::string prompt = ToValidUtf8(tokenizer_->Decode(problem.prompt_tokens, /*skip_special_tokens=*/false));
  for (const Sample& sample : group.samples) {
    if (!NeedsReward(sample)) continue;
    v1::RewardSample& out = samples.emplace_back();
    out.set_response(ToValidUtf8(tokenizer_->Decode(sample.tokens, /*skip_special_tokens=*/true)));
    out.set_sample_id(SampleId(run_id_, group.group_id, sample.sample_index, out.response()));
    out.set_prompt(prompt);
    out.set_answer(problem.answer);
    out.set_problem_json(problem.line);
  }
  const uint64_t group_id = group.group_id;
  waiting_[group_id] = std::move(group);
  client_->Submit(group_id, std::move(samples));
}

std::optional<SampleGroup> GroupRewards::Next(absl::Duration wait) {
  if (!scored_.empty()) {
    SampleGroup group = std::move(scored_.front());
    scored_.pop_front();
    return group;
  }
  if (waiting_.empty()) return std::nullopt;
  std::optional<RewardClient::Scored> scored = client_->Next(wait);
  if (!scored) return std::nullopt;
  auto node = waiting_.extract(scored->key);
  SampleGroup group = std::move(node.mapped());
  size_t next = 0;
  for (Sample& sample : group.samples) {
    if (NeedsReward(sample)) SetReward(group.group_id, scored->rewards[next++], &sample);
  }
  return group;
}

}  // namespace lockstep
