// lockstep_score: log-probs of given tokens, for comparisons with other engines. `lockstep score` runs it.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "engine/checkpoint/hf_folder.h"
#include "learner/score.h"

ABSL_FLAG(std::string, model, "", "Hugging Face model folder");
ABSL_FLAG(std::string, engine, "learner", "learner (packed forward) or rollout (paged prefill and decode)");
ABSL_FLAG(std::string, dtype, "fp16", "fp16, bf16 or fp32");
ABSL_FLAG(std::string, numerics, "matched", "matched or native");
ABSL_FLAG(double, temperature, 1, "of the distribution whose log-probs are asked for");
ABSL_FLAG(int32_t, threads, 2, "compute threads");
ABSL_FLAG(int32_t, chunk, 128, "tokens of a prefill chunk (engine rollout)");
ABSL_FLAG(bool, prefill, false, "score lines of tokens from the prefill alone (engine rollout)");
ABSL_FLAG(std::string, out, "", "file to write; empty: standard output");

namespace lockstep {
namespace {

absl::StatusOr<ScorerOptions> OptionsFromFlags() {
  ScorerOptions options;
  auto engine = ParseScoreEngine(absl::GetFlag(FLAGS_engine));
  if (!engine.ok()) return engine.status();
  options.engine = *engine;
  const std::string numerics = absl::GetFlag(FLAGS_numerics);
  if (numerics != "matched" && numerics != "native") {
    return absl::InvalidArgumentError(absl::StrCat("--numerics is '", numerics, "'; known are matched, native"));
  }
  options.numerics = numerics == "matched" ? Numerics::kMatched : Numerics::kNative;
  options.temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature));
  options.threads = absl::GetFlag(FLAGS_threads);
  options.prefill_chunk_tokens = absl::GetFlag(FLAGS_chunk);
  if (!(options.temperature >= 0.01f && options.temperature <= 100) || options.threads < 1 || options.threads > 256 ||
      options.prefill_chunk_tokens < 1) {
    return absl::InvalidArgumentError("--temperature takes 0.01 to 100, --threads 1 to 256, --chunk at least 1");
  }
  return options;
}

absl::Status Run(const std::string& path) {
  const std::string model = absl::GetFlag(FLAGS_model);
  if (model.empty()) return absl::InvalidArgumentError("--model=DIR is missing; it names a Hugging Face model folder");
  const auto options = OptionsFromFlags();
  if (!options.ok()) return options.status();
  const auto dtype = ParseDType(absl::GetFlag(FLAGS_dtype));
  if (!dtype.ok()) return absl::InvalidArgumentError(absl::StrCat("--dtype: ", std::string(dtype.status().message())));
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  }
  std::unique_ptr<Tokenizer> tokenizer;  // lines of tokens need none
  if (std::filesystem::exists(model + "/tokenizer.json")) {
    auto loaded = Tokenizer::Load(model);
    if (!loaded.ok()) return loaded.status();
    tokenizer = *std::move(loaded);
  }
  auto weights = LoadHfWeights(model, *dtype);
  if (!weights.ok()) return weights.status();
  std::ofstream out_file;
  if (const std::string out = absl::GetFlag(FLAGS_out); !out.empty()) {
    out_file.open(out, std::ios::trunc);
    if (!out_file) return absl::UnavailableError(absl::StrCat("cannot write ", out));
  }
  Scorer scorer(*weights, *options);
  const ScoreFileOptions file_options = {.name = path == "-" ? "stdin" : path, .prefill = absl::GetFlag(FLAGS_prefill)};
  return ScoreLines(path == "-" ? std::cin : file, out_file.is_open() ? out_file : std::cout, file_options,
                    tokenizer.get(), scorer);
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("log-probs of given tokens: lockstep_score --model=DIR FILE.jsonl");
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  if (words.size() != 2) {
    std::fprintf(stderr, "error: give one FILE.jsonl, or - for standard input\n");
    return 2;
  }
  const absl::Status status = lockstep::Run(words[1]);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
