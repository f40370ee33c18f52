#include "learner/filter.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "learner/group_rewards.h"
#include "learner/run_loop.h"

namespace lockstep {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(500);
// While a reward service has groups.
constexpr absl::Duration kRewardPoll = absl::Milliseconds(10);
// Groups handed out at once; bounds what waits in memory.
constexpr size_t kMaxOutstanding = 512;
// Keeps the filter's draws apart from those of a run with the same seed, whose groups count from 0.
constexpr uint64_t kFirstGroupId = uint64_t{1} << 40;

}  // namespace

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
  size_t submitted = 0, finished = 0;
  while (finished < problems.size()) {
    if (parts.terminated() || parts.monitor->stop_requested()) {
      return absl::CancelledError(absl::StrCat("stopped after ", finished, " of ", problems.size(), " problems"));
    }
    for (; submitted < problems.size() && submitted - finished < kMaxOutstanding; ++submitted) {
      parts.rollouts->Submit(MakeGroupRequest(config, parts.run_id, kFirstGroupId + submitted,
                                              problems[submitted].prompt_tokens, parts.stop_token_ids));
    }
    auto group = parts.rollouts->Next((*rewards)->pending() > 0 ? kRewardPoll : kPoll);
    if (!group.ok() && !absl::IsDeadlineExceeded(group.status())) return group.status();
    if (group.ok()) {
      const Problem& problem = problems[group->group_id - kFirstGroupId];
      (*rewards)->Add(*std::move(group), problem);
    }
    while (std::optional<SampleGroup> scored = (*rewards)->Next(absl::ZeroDuration())) {
      double passed = 0;
      for (const Sample& sample : scored->samples) passed += sample.dropped_reason.empty() ? sample.reward : 0;
      pass_rates[scored->group_id - kFirstGroupId] = passed / parts.samples;
      ++finished;
    }
    const auto servers = parts.rollouts->ServerStatuses();
    parts.monitor->Progress([&](v1::RunStatus& status) {
      status.set_phase(v1::RUN_PHASE_ROLLOUT);
      status.set_step(finished);
      status.set_max_steps(problems.size());
      status.mutable_servers()->Assign(servers.begin(), servers.end());
    });
  }
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
