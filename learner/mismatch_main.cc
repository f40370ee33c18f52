// lockstep_mismatch: the offline analysis of rollout against training log-probs. `lockstep mismatch` runs it and draws.
#include <cstdio>
#include <filesystem>
#include <limits>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "learner/mismatch_analysis.h"

ABSL_FLAG(std::string, model, "", "Hugging Face model folder");
ABSL_FLAG(std::string, prompts, "", "prompts to sample from, JSON lines");
ABSL_FLAG(std::string, tokens, "", "in place of --prompts: prompts with responses, JSON lines");
ABSL_FLAG(std::string, prompt_template, "", "of prompts that are texts; see data.prompt_template");
ABSL_FLAG(std::string, pairs, "bf16/bf16,fp16/fp16", "learner/rollout dtypes, perhaps with @matched; native otherwise");
ABSL_FLAG(std::string, sample, "shared",
          "shared: one set of tokens for all pairs; own: each rollout engine draws its own");
ABSL_FLAG(std::string, lengths, "", "of the samples: empty (max_tokens), 'spread', or numbers in rotation");
ABSL_FLAG(int64_t, max_tokens, 256, "longest response");
ABSL_FLAG(int64_t, n, 1, "samples a prompt");
ABSL_FLAG(int64_t, limit, 0, "lines that are used; 0: all");
ABSL_FLAG(uint64_t, seed, 1, "of the draws");
ABSL_FLAG(double, temperature, 1, "of the draws and of both log-probs");
ABSL_FLAG(int32_t, threads, 2, "compute threads");
ABSL_FLAG(int64_t, batch, 64, "sequences decoded in one engine step");
ABSL_FLAG(int64_t, chunk, 128, "tokens of prefill in one engine step");
ABSL_FLAG(int64_t, micro_batch_tokens, 4096, "tokens of one training pass");
ABSL_FLAG(int64_t, points, 2000, "token points of a pair in mismatch.json");
ABSL_FLAG(std::string, out, "mismatch", "folder of the result and of what is kept");
ABSL_FLAG(int32_t, parent_pid, 0, "process whose end stops this one; 0: none");

namespace lockstep {
namespace {

constexpr int kStoppedExitCode = 130;

absl::Status CheckRange(const char* flag, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " is ", value, ", must be ", low, " to ", high));
}

absl::StatusOr<MismatchOptions> OptionsFromFlags() {
  MismatchOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model);
  if (options.model_dir.empty()) {
    return absl::InvalidArgumentError("--model=DIR is missing; it names a Hugging Face model folder");
  }
  options.prompts = absl::GetFlag(FLAGS_prompts);
  options.tokens = absl::GetFlag(FLAGS_tokens);
  if (options.prompts.empty() == options.tokens.empty()) {
    return absl::InvalidArgumentError("give either --prompts=FILE.jsonl to sample from, or --tokens=FILE.jsonl");
  }
  const std::string sample = absl::GetFlag(FLAGS_sample);
  if (sample != "shared" && sample != "own") {
    return absl::InvalidArgumentError(absl::StrCat("--sample is '", sample, "'; known are shared, own"));
  }
  options.own_samples = sample == "own";
  if (options.own_samples && !options.tokens.empty()) {
    return absl::InvalidArgumentError("--sample=own draws tokens, --tokens gives them; leave one out");
  }
  auto pairs = ParsePrecisionPairs(absl::GetFlag(FLAGS_pairs));
  if (!pairs.ok()) return pairs.status();
  options.pairs = *std::move(pairs);
  constexpr int64_t kMany = std::numeric_limits<int32_t>::max();
  const struct {
    const char* flag;
    int64_t value, low, high;
  } ranges[] = {{"max_tokens", absl::GetFlag(FLAGS_max_tokens), 1, kMany},
                {"n", absl::GetFlag(FLAGS_n), 1, 10000},
                {"limit", absl::GetFlag(FLAGS_limit), 0, kMany},
                {"threads", absl::GetFlag(FLAGS_threads), 1, 256},
                {"batch", absl::GetFlag(FLAGS_batch), 1, 4096},
                {"chunk", absl::GetFlag(FLAGS_chunk), 1, 1 << 20},
                {"micro_batch_tokens", absl::GetFlag(FLAGS_micro_batch_tokens), 1, 1 << 24},
                {"points", absl::GetFlag(FLAGS_points), 0, 1000000}};
  for (const auto& range : ranges) {
    absl::Status status = CheckRange(range.flag, range.value, range.low, range.high);
    if (!status.ok()) return status;
  }
  options.prompt_template = absl::GetFlag(FLAGS_prompt_template);
  options.lengths = absl::GetFlag(FLAGS_lengths);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.n = static_cast<uint64_t>(absl::GetFlag(FLAGS_n));
  options.limit = static_cast<uint64_t>(absl::GetFlag(FLAGS_limit));
  options.seed = absl::GetFlag(FLAGS_seed);
  options.temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature));
  if (!(options.temperature >= 0.01f && options.temperature <= 100)) {
    return absl::InvalidArgumentError("--temperature must be 0.01 to 100");
  }
  options.threads = absl::GetFlag(FLAGS_threads);
  options.max_batch_size = absl::GetFlag(FLAGS_batch);
  options.prefill_chunk_tokens = absl::GetFlag(FLAGS_chunk);
  options.micro_batch_tokens = absl::GetFlag(FLAGS_micro_batch_tokens);
  options.max_token_points = static_cast<size_t>(absl::GetFlag(FLAGS_points));
  options.out_dir = absl::GetFlag(FLAGS_out);
  return options;
}

absl::Status Run(const StopSignal& stop) {
  const auto options = OptionsFromFlags();
  if (!options.ok()) return options.status();
  std::error_code error;
  std::filesystem::create_directories(options->out_dir, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot make the folder ", options->out_dir));
  MismatchHooks hooks;
  hooks.log = [](const std::string& line) {
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  };
  hooks.stopped = [&stop] { return stop.stopped(); };
  const auto result = AnalyzeMismatch(*options, hooks);
  if (!result.ok()) return result.status();
  return WriteFileAtomically(options->out_dir + "/mismatch.json", result->dump(1) + "\n");
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage(
      "lockstep_mismatch --model=DIR --prompts=FILE.jsonl [--pairs=bf16/bf16,...] [--out=DIR]");
  if (absl::ParseCommandLine(argc, argv).size() != 1) {
    std::fprintf(stderr, "error: lockstep_mismatch takes flags alone\n");
    return 2;
  }
  lockstep::StopSignal stop;
  const lockstep::ParentWatch parent(absl::GetFlag(FLAGS_parent_pid), [&stop] { stop.Request("the client has gone"); });
  const absl::Status status = lockstep::Run(stop);
  if (status.ok()) return 0;
  if (status.code() == absl::StatusCode::kCancelled) return lockstep::kStoppedExitCode;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
