#include "learner/eval_mode.h"

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "learner/evaluation.h"
#include "learner/group_rewards.h"

namespace lockstep {

absl::Status EvaluateModel(const EvalModeParts& parts) {
  if (parts.out.empty()) return absl::InvalidArgumentError("--eval_out is missing; it names the file to write");
  auto rewards = GroupRewards::Create(parts.config.data(), parts.run_id, parts.tokenizer, /*metrics=*/nullptr);
  if (!rewards.ok()) return rewards.status();
  parts.rollouts->SetWeights({0, 0}, {});
  EvaluationParts evaluation;
  evaluation.config = parts.config;
  evaluation.run_id = parts.run_id;
  evaluation.stop_token_ids = parts.stop_token_ids;
  evaluation.tokenizer = parts.tokenizer;
  evaluation.problems = parts.problems;
  evaluation.rollouts = parts.rollouts;
  evaluation.rewards = rewards->get();
  const size_t count = parts.problems->size();
  const uint32_t n = parts.config.eval().n();
  evaluation.between = [&](size_t done) -> absl::Status {
    if (parts.terminated() || parts.monitor->stop_requested()) {
      return absl::CancelledError(absl::StrCat("stopped after ", done, " of ", count, " problems"));
    }
    const auto servers = parts.rollouts->ServerStatuses();
    parts.monitor->Progress([&](v1::RunStatus& status) {
      status.set_phase(v1::RUN_PHASE_EVAL);
      status.set_step(done);
      status.set_max_steps(count);
      status.set_samples_done(static_cast<uint32_t>(done) * n);
      status.set_samples_total(static_cast<uint32_t>(count) * n);
      status.mutable_servers()->Assign(servers.begin(), servers.end());
    });
    return absl::OkStatus();
  };
  const auto result = Evaluate(evaluation);
  if (!result.ok()) return result.status();
  LogInfo(EvalSummaryText(result->summary));
  parts.monitor->Publish([&](v1::RunStatus& status) {
    status.set_step(count);
    *status.mutable_last_eval() = result->summary;
  });
  return WriteFileAtomically(parts.out, EvaluationReport(parts.config, *result));
}

}  // namespace lockstep
