#include "learner/filter.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "learner/group_rewards.h"
#include "learner/sampling.h"

namespace lockstep {
absl::Status FilterProblems(const FilterParts& parts) {
  if (parts.out.empty()) return absl::InvalidArgumentError("--filter_out is missing; it names the file to write");
  if (parts.samples == 0 || !(parts.low <= parts.high)) {
    return absl::InvalidArgumentError(absl::StrCat("--filter_samples ", parts.samples, ", --filter_low ", parts.low,
                                                   ", --filter_high ", parts.high,
                                                   ": at least one sample and low <= high are needed"));
  }
  auto rewards = GroupRewards::Create(parts.config.data(), parts.run_id, parts.tokenizer, /*metrics=*/nullptr);
  if (!rewards.ok()) return rewards.status();
  v1::RunConfig config = parts.config;
  config.mutable_rollout()->set_n(parts.samples);
  const std::vector<Problem>& problems = *parts.problems;
  parts.rollouts->SetWeights({0, 0}, {});
  std::vector<double> pass_rates(problems.size(), -1);
  GroupSampling sampling;
  sampling.rollouts = parts.rollouts;
  sampling.first_group_id = kFirstFilterGroup;
  sampling.rewards = rewards->get();
  sampling.problems = parts.problems;
  sampling.make = [&](size_t index) {
    return MakeGroupRequest(config, parts.run_id, kFirstFilterGroup + index, problems[index].prompt_tokens,
                            parts.stop_token_ids);
  };
  sampling.take = [&](size_t index, SampleGroup group) {
    double passed = 0;
    for (const Sample& sample : group.samples) passed += sample.dropped_reason.empty() ? sample.reward : 0;
    pass_rates[index] = passed / parts.samples;
    return absl::OkStatus();
  };
  sampling.between = [&](size_t done) -> absl::Status {
    if (parts.terminated() || parts.monitor->stop_requested()) {
      return absl::CancelledError(absl::StrCat("stopped after ", done, " of ", problems.size(), " problems"));
    }
    const auto servers = parts.rollouts->ServerStatuses();
    parts.monitor->Progress([&](v1::RunStatus& status) {
      status.set_phase(v1::RUN_PHASE_ROLLOUT);
      status.set_step(done);
      status.set_max_steps(problems.size());
      status.mutable_servers()->Assign(servers.begin(), servers.end());
    });
    return absl::OkStatus();
  };
  if (absl::Status status = SampleGroups(sampling); !status.ok()) return status;
  std::string text;
  size_t kept = 0;
  for (size_t i = 0; i < problems.size(); ++i) {
    if (pass_rates[i] < parts.low || pass_rates[i] > parts.high) continue;
    auto object = nlohmann::ordered_json::parse(problems[i].line, nullptr, false);
    object["pass_rate"] = pass_rates[i];
    absl::StrAppend(&text, object.dump(), "\n");
    ++kept;
  }
  const std::string message = absl::StrCat("kept ", kept, " of ", problems.size(), " problems with a pass rate in [",
                                           parts.low, ", ", parts.high, "] over ", parts.samples, " samples");
  LogInfo(message);
  parts.monitor->Publish([&](v1::RunStatus& status) { status.set_message(message); });
  return WriteFileAtomically(parts.out, text);
}

}  // namespace lockstep
