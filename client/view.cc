#include "client/view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace lockstep {

std::string PhaseName(v1::RunPhase phase) {
  switch (phase) {
    case v1::RUN_PHASE_STARTING:
      return "starting";
    case v1::RUN_PHASE_ROLLOUT:
      return "rollout";
    case v1::RUN_PHASE_TRAIN:
      return "training";
    case v1::RUN_PHASE_WEIGHT_SYNC:
      return "weight sync";
    case v1::RUN_PHASE_CHECKPOINT:
      return "checkpoint";
    case v1::RUN_PHASE_EVAL:
      return "evaluation";
    case v1::RUN_PHASE_PAUSED:
      return "paused";
    case v1::RUN_PHASE_ENDED:
      return "ended";
    case v1::RUN_PHASE_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

std::string Duration(double seconds) {
  if (seconds < 0) return "?";
  const int64_t whole = static_cast<int64_t>(seconds + 0.5);
  if (whole >= 3600) return absl::StrFormat("%dh%02dm", whole / 3600, whole % 3600 / 60);
  if (whole >= 60) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  return absl::StrFormat("%ds", whole);
}

// A supervised step has no rollouts, so nothing but the learner's figures.
bool IsSupervised(const v1::RunStatus& status) {
  return status.servers_size() == 0 && status.last_step().rollout_tokens_per_second() == 0;
}

std::string StepLine(const v1::RunStatus& status) {
  const v1::StepSummary& s = status.last_step();
  if (IsSupervised(status)) {
    return absl::StrFormat("step %d/%d  loss %.4g  grad norm %.3g  loss scale %g%s  train %.0f tok/s  left %s",
                           s.step(), status.max_steps(), s.loss(), s.grad_norm(), s.loss_scale(),
                           s.skipped() ? " (skipped)" : "", s.train_tokens_per_second(),
                           Duration(status.seconds_left()));
  }
  return absl::StrFormat(
      "step %d/%d  reward %.3f  loss %.4g  length %.1f  KL(mu||pi) %.2e  max|log mu-log pi| %.1e  loss scale %g%s  "
      "rollout %.0f tok/s  train %.0f tok/s  staleness %.2g  left %s",
      s.step(), status.max_steps(), s.reward_mean(), s.loss(), s.response_length_mean(), s.kl_k3(),
      s.max_abs_log_ratio(), s.loss_scale(), s.skipped() ? " (skipped)" : "", s.rollout_tokens_per_second(),
      s.train_tokens_per_second(), s.staleness_mean(), Duration(status.seconds_left()));
}

std::string EvalLine(const v1::EvalSummary& eval) {
  const auto at = [&eval](const google::protobuf::Map<uint32_t, double>& values, uint32_t k) {
    const auto found = values.find(k);
    return found == values.end() ? 0.0 : found->second;
  };
  std::string line = absl::StrFormat("pass@1 %.3f", at(eval.pass_at_k(), 1));
  if (eval.n() > 1) {
    absl::StrAppend(&line, absl::StrFormat("  pass@%d %.3f  maj@%d %.3f", eval.n(), at(eval.pass_at_k(), eval.n()),
                                           eval.n(), at(eval.majority_at_k(), eval.n())));
  }
  absl::StrAppend(&line, absl::StrFormat("  length %.1f  cut %.1f%%  (%d problems, %s)", eval.response_length_mean(),
                                         100 * eval.cut_by_length(), eval.problems(), Duration(eval.seconds())));
  return line;
}

std::string StatusBlock(const v1::RunStatus& status) {
  const v1::StepSummary& s = status.last_step();
  std::string out = absl::StrFormat("run %s  %s  step %d/%d  weights v%d (epoch %d)  left %s\n", status.run_dir(),
                                    PhaseName(status.phase()), status.step(), status.max_steps(),
                                    status.weight_version(), status.epoch(), Duration(status.seconds_left()));
  const std::string learner =
      absl::StrFormat("learner    loss %.4g   grad norm %.3g   loss scale %g   skipped steps %d\n", s.loss(),
                      s.grad_norm(), s.loss_scale(), s.skipped_steps_total());
  if (IsSupervised(status)) {
    absl::StrAppend(&out, learner, absl::StrFormat("speed      training %.0f tok/s\n", s.train_tokens_per_second()));
    if (!status.message().empty()) absl::StrAppend(&out, status.message(), "\n");
    return out;
  }
  constexpr int kBar = 30;
  const double done =
      status.samples_total() == 0 ? 0 : static_cast<double>(status.samples_done()) / status.samples_total();
  const int filled = std::clamp(static_cast<int>(done * kBar), 0, kBar);
  absl::StrAppend(&out, "samples    [", std::string(static_cast<size_t>(filled), '#'),
                  std::string(static_cast<size_t>(kBar - filled), '.'), "] ", status.samples_done(), "/",
                  status.samples_total(), "\n");
  absl::StrAppend(&out, absl::StrFormat("reward     %.3f   response length %.1f tokens   entropy %.3f nats\n",
                                        s.reward_mean(), s.response_length_mean(), s.entropy()));
  absl::StrAppend(&out, absl::StrFormat("mismatch   KL(mu||pi) %.2e   mean |log mu - log pi| %.2e   max %.2e\n",
                                        s.kl_k3(), s.mean_abs_log_ratio(), s.max_abs_log_ratio()));
  if (s.router_choices() > 0) {
    absl::StrAppend(&out, absl::StrFormat("routers    %.3g%% of the rollout's choices of experts differ here\n",
                                          100 * s.router_mismatch()));
  }
  absl::StrAppend(&out, learner);
  absl::StrAppend(&out,
                  absl::StrFormat("speed      rollout %.0f tok/s   training %.0f tok/s   staleness %.2g\n",
                                  s.rollout_tokens_per_second(), s.train_tokens_per_second(), s.staleness_mean()));
  if (status.has_last_eval()) {
    absl::StrAppend(&out, "eval       step ", status.last_eval().step(), "  ", EvalLine(status.last_eval()), "\n");
  }
  for (const v1::RolloutServerStatus& server : status.servers()) {
    absl::StrAppend(&out, "server     ", server.address(), " ", server.state(), " v", server.weight_version(), ", ",
                    server.groups_in_flight(), " groups in flight",
                    server.last_error().empty() ? "" : absl::StrCat("; ", server.last_error()), "\n");
  }
  if (!status.message().empty()) absl::StrAppend(&out, status.message(), "\n");
  return out;
}

void View::Erase() {
  for (int i = 0; i < drawn_lines_; ++i) std::fputs("\x1b[1A\x1b[2K", out_);
  drawn_lines_ = 0;
}

void View::Show(const v1::RunStatus& status) {
  if (terminal_) {
    const std::string block = StatusBlock(status);
    Erase();
    std::fputs(block.c_str(), out_);
    drawn_lines_ = static_cast<int>(std::count(block.begin(), block.end(), '\n'));
  } else {
    if (status.last_step().step() > 0 && static_cast<int64_t>(status.last_step().step()) != last_step_) {
      last_step_ = static_cast<int64_t>(status.last_step().step());
      std::fprintf(out_, "%s\n", StepLine(status).c_str());
    }
    if (status.has_last_eval() && static_cast<int64_t>(status.last_eval().step()) != last_eval_step_) {
      last_eval_step_ = static_cast<int64_t>(status.last_eval().step());
      std::fprintf(out_, "eval at step %d  %s\n", static_cast<int>(last_eval_step_),
                   EvalLine(status.last_eval()).c_str());
    }
    if (!status.message().empty() && status.message() != last_message_) {
      std::fprintf(out_, "%s: %s\n", PhaseName(status.phase()).c_str(), status.message().c_str());
    }
    last_message_ = status.message();
  }
  std::fflush(out_);
}

void View::Note(const std::string& line) {
  if (terminal_) Erase();
  std::fprintf(out_, "%s\n", line.c_str());
  std::fflush(out_);
}

}  // namespace lockstep
