#include "learner/evaluation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/digest.h"
#include "learner/pass_at_k.h"
#include "learner/sampling.h"
#include "learner/verifier/math_answer.h"
#include "learner/verifier/number.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// The run's config as if section eval were its rollout section.
v1::RunConfig WithEvalSampling(v1::RunConfig config) {
  v1::RolloutConfig& rollout = *config.mutable_rollout();
  const v1::EvalConfig& eval = config.eval();
  rollout.set_n(eval.n());
  rollout.set_temperature(eval.temperature());
  rollout.set_top_p(eval.top_p());
  rollout.set_top_k(eval.top_k());
  if (eval.max_tokens() > 0) rollout.set_max_tokens(eval.max_tokens());
  return config;
}

// What a response answers, in the sense of the reward.
struct Answer {
  std::string text;
  std::optional<Number> number;  // kNumeric only
};

// Nothing where it answers nothing.
std::optional<Answer> AnswerOf(RewardKind kind, const std::string& response) {
  if (kind == RewardKind::kNumeric) {
    auto number = LastNumber(response);
    return number ? std::optional(Answer{"", std::move(number)}) : std::nullopt;
  }
  if (kind == RewardKind::kExact) {
    const std::string text(absl::StripAsciiWhitespace(response));
    return text.empty() ? std::nullopt : std::optional(Answer{text, std::nullopt});
  }
  auto text = ExtractAnswer(response);
  return text ? std::optional(Answer{*std::move(text), std::nullopt}) : std::nullopt;
}

bool SameMeaning(RewardKind kind, const Answer& a, const Answer& b) {
  if (kind == RewardKind::kNumeric) return Equal(*a.number, *b.number);
  return a.text == b.text || (kind != RewardKind::kExact && SameAnswer(a.text, b.text));
}

// Classes of equal answers, numbered in the order of their first sample.
class AnswerClasses {
 public:
  explicit AnswerClasses(RewardKind kind) : kind_(kind) {}
  int Of(const Answer& answer) {
    for (size_t i = 0; i < seen_.size(); ++i) {
      if (SameMeaning(kind_, seen_[i], answer)) return static_cast<int>(i);
    }
    seen_.push_back(answer);
    return static_cast<int>(seen_.size()) - 1;
  }

 private:
  RewardKind kind_;
  std::vector<Answer> seen_;
};

// What is kept of a problem's samples.
struct Tally {
  ProblemResult result;
  std::vector<double> pass, majority;  // by ReportedKs
  uint64_t tokens = 0;
  uint32_t cut = 0, dropped = 0, no_answer = 0;
};

Tally TallyGroup(const EvaluationParts& parts, const SampleGroup& group, const std::vector<uint32_t>& ks) {
  Tally tally;
  AnswerClasses classes(parts.rewards->kind());
  std::vector<Vote> votes;
  for (const Sample& sample : group.samples) {
    Vote vote;
    const bool cut = sample.finish_reason == v1::FINISH_REASON_LENGTH;
    tally.tokens += sample.tokens.size();
    tally.cut += cut;
    tally.dropped += !sample.dropped_reason.empty();
    if (!cut && sample.dropped_reason.empty()) {
      vote.correct = sample.reward >= kRightReward;
      const auto answer =
          AnswerOf(parts.rewards->kind(), parts.tokenizer->Decode(sample.tokens, /*skip_special_tokens=*/true));
      if (answer) vote.answer_class = classes.Of(*answer);
    }
    tally.no_answer += vote.answer_class == Vote::kNoAnswer;
    tally.result.right += vote.correct;
    votes.push_back(vote);
  }
  const auto n = static_cast<int64_t>(votes.size());
  for (uint32_t k : ks) {
    tally.pass.push_back(PassAtK(n, tally.result.right, k));
    tally.majority.push_back(MajorityAtK(votes, k));
  }
  tally.result.majority = tally.majority.back();
  tally.result.response_length_mean = static_cast<double>(tally.tokens) / static_cast<double>(n);
  return tally;
}

// In the order of the problems, so that sums do not depend on arrival.
Evaluation Summarize(const EvaluationParts& parts, const std::vector<Tally>& tallies, const std::vector<uint32_t>& ks) {
  Evaluation evaluation;
  v1::EvalSummary& summary = evaluation.summary;
  summary.set_step(parts.step);
  summary.set_weight_version(parts.weights.second);
  summary.set_problems(tallies.size());
  summary.set_n(ks.back());
  const double problems = static_cast<double>(tallies.size());
  const double samples = problems * ks.back();
  double cut = 0, no_answer = 0;
  uint64_t tokens = 0, dropped = 0;
  std::vector<double> pass(ks.size()), majority(ks.size());
  for (const Tally& tally : tallies) {
    for (size_t i = 0; i < ks.size(); ++i) {
      pass[i] += tally.pass[i];
      majority[i] += tally.majority[i];
    }
    cut += tally.cut;
    no_answer += tally.no_answer;
    tokens += tally.tokens;
    dropped += tally.dropped;
    evaluation.problems.push_back(tally.result);
  }
  for (size_t i = 0; i < ks.size(); ++i) {
    (*summary.mutable_pass_at_k())[ks[i]] = pass[i] / problems;
    (*summary.mutable_majority_at_k())[ks[i]] = majority[i] / problems;
  }
  summary.set_response_length_mean(static_cast<double>(tokens) / samples);
  summary.set_response_tokens(tokens);
  summary.set_cut_by_length(cut / samples);
  summary.set_no_answer(no_answer / samples);
  summary.set_dropped_samples(dropped);
  return evaluation;
}

Json Figures(const v1::EvalSummary& summary) {
  Json eval;
  eval["weight_version"] = summary.weight_version();
  eval["problems"] = summary.problems();
  eval["n"] = summary.n();
  const std::map<uint32_t, double> pass(summary.pass_at_k().begin(), summary.pass_at_k().end());
  const std::map<uint32_t, double> majority(summary.majority_at_k().begin(), summary.majority_at_k().end());
  for (const auto& [k, value] : pass) eval[absl::StrCat("pass@", k)] = value;
  for (const auto& [k, value] : majority) eval[absl::StrCat("maj@", k)] = value;
  eval["response_length_mean"] = summary.response_length_mean();
  eval["response_tokens"] = summary.response_tokens();
  eval["cut_by_length"] = summary.cut_by_length();
  eval["no_answer"] = summary.no_answer();
  eval["dropped_samples"] = summary.dropped_samples();
  eval["seconds"] = summary.seconds();
  return eval;
}

double At(const google::protobuf::Map<uint32_t, double>& values, uint32_t k) {
  const auto it = values.find(k);
  return it == values.end() ? 0 : it->second;
}

}  // namespace

absl::StatusOr<Evaluation> Evaluate(const EvaluationParts& parts) {
  const v1::RunConfig config = WithEvalSampling(parts.config);
  const uint32_t n = config.rollout().n();
  if (n == 0 || parts.problems->empty()) {
    return absl::InvalidArgumentError("an evaluation needs eval.n of at least 1 and a problem in data.eval");
  }
  const std::vector<Problem>& problems = *parts.problems;
  const absl::Time start = absl::Now();
  const std::vector<uint32_t> ks = ReportedKs(n);
  std::vector<Tally> tallies(problems.size());
  GroupSampling sampling;
  sampling.rollouts = parts.rollouts;
  sampling.first_group_id = kFirstEvaluationGroup + (parts.step << kEvaluationProblemBits);
  sampling.problems = parts.problems;
  sampling.rewards = parts.rewards;
  sampling.make = [&](size_t index) {
    v1::Group group = MakeGroupRequest(config, parts.run_id, sampling.first_group_id + index,
                                       problems[index].prompt_tokens, parts.stop_token_ids);
    group.set_min_weight_epoch(parts.weights.first);
    group.set_min_weight_version(parts.weights.second);
    return group;
  };
  sampling.take = [&](size_t index, SampleGroup group) {
    tallies[index] = TallyGroup(parts, group, ks);
    return absl::OkStatus();
  };
  sampling.take_other = parts.take_other;
  sampling.between = parts.between;
  if (absl::Status status = SampleGroups(sampling); !status.ok()) return status;
  Evaluation evaluation = Summarize(parts, tallies, ks);
  evaluation.summary.set_seconds(absl::ToDoubleSeconds(absl::Now() - start));
  return evaluation;
}

std::string EvalSummaryJson(const v1::EvalSummary& summary) {
  Json line;
  line["step"] = summary.step();
  line["eval"] = Figures(summary);
  return line.dump();
}

std::string EvalSummaryText(const v1::EvalSummary& summary) {
  std::string text = absl::StrFormat("pass@1 %.4f", At(summary.pass_at_k(), 1));
  if (const uint32_t n = summary.n(); n > 1) {
    absl::StrAppend(&text, absl::StrFormat("  pass@%d %.4f  maj@%d %.4f", n, At(summary.pass_at_k(), n), n,
                                           At(summary.majority_at_k(), n)));
  }
  absl::StrAppend(&text, absl::StrFormat("  length %.1f  cut %.1f%%", summary.response_length_mean(),
                                         100 * summary.cut_by_length()));
  return text;
}

std::string EvaluationReport(const v1::RunConfig& config, const Evaluation& evaluation) {
  const v1::RolloutConfig rollout = WithEvalSampling(config).rollout();
  Json report;
  report["model"] = config.model().path();
  report["data"] = config.data().eval();
  report["reward"] = config.data().reward();
  report["seed"] = config.seed();
  report["dtype"] = rollout.dtype();
  report["numerics"] = config.numerics();
  report["sampling"] = {{"n", rollout.n()},
                        {"temperature", rollout.temperature()},
                        {"top_p", rollout.top_p()},
                        {"top_k", rollout.top_k()},
                        {"max_tokens", rollout.max_tokens()}};
  report["results"] = Figures(evaluation.summary);
  report["results"].erase("weight_version");
  Json problems = Json::array();
  for (size_t i = 0; i < evaluation.problems.size(); ++i) {
    const ProblemResult& result = evaluation.problems[i];
    problems.push_back({{"index", i},
                        {"right", result.right},
                        {"majority", result.majority},
                        {"response_length_mean", result.response_length_mean}});
  }
  report["problems"] = problems;
  return report.dump(2) + "\n";
}

std::string EvaluationSettingsDigest(const v1::RunConfig& config) {
  v1::RunConfig relevant;
  *relevant.mutable_model() = config.model();
  *relevant.mutable_data() = config.data();
  *relevant.mutable_algorithm() = config.algorithm();
  *relevant.mutable_learner() = config.learner();
  relevant.mutable_learner()->clear_threads();
  *relevant.mutable_eval() = config.eval();
  relevant.mutable_rollout()->set_dtype(config.rollout().dtype());
  relevant.mutable_rollout()->set_n(config.rollout().n());
  relevant.mutable_rollout()->set_temperature(config.rollout().temperature());
  relevant.mutable_rollout()->set_max_tokens(config.rollout().max_tokens());
  relevant.mutable_trainer()->set_prompts_per_step(config.trainer().prompts_per_step());
  relevant.mutable_trainer()->set_updates_per_step(config.trainer().updates_per_step());
  relevant.set_numerics(config.numerics());
  relevant.set_seed(config.seed());
  const std::string bytes = relevant.SerializeAsString();  // no maps in it: one order
  return DigestHex(Digest(bytes.data(), bytes.size()));
}

}  // namespace lockstep
