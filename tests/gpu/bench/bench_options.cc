#include "tests/gpu/bench/bench_options.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/model/named_shapes.h"

namespace lockstep::cuda {
namespace {

constexpr int64_t kLargest = int64_t{1} << 20;

absl::Status ParseNumber(absl::string_view text, int64_t* number) {
  if (absl::SimpleAtoi(text, number) && *number > 0 && *number <= kLargest) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a number from 1 to ", kLargest));
}

absl::Status ParseNumbers(absl::string_view text, std::vector<int64_t>* numbers) {
  numbers->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    absl::Status status = ParseNumber(part, &numbers->emplace_back());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ParseDType(absl::string_view text, DType* dtype) {
  if (text != "fp16" && text != "bf16") return absl::InvalidArgumentError("--dtype is fp16 or bf16");
  *dtype = text == "fp16" ? DType::kF16 : DType::kBF16;
  return absl::OkStatus();
}

absl::Status ParseOne(absl::string_view argument, ParsedOptions* parsed) {
  BenchOptions& bench = parsed->bench;
  if (absl::ConsumePrefix(&argument, "--dtype=")) return ParseDType(argument, &bench.dtype);
  if (absl::ConsumePrefix(&argument, "--batches=")) return ParseNumbers(argument, &bench.batches);
  if (absl::ConsumePrefix(&argument, "--context=")) return ParseNumber(argument, &bench.context);
  if (absl::ConsumePrefix(&argument, "--train_tokens=")) return ParseNumber(argument, &bench.train_tokens);
  if (absl::ConsumePrefix(&argument, "--train_length=")) return ParseNumber(argument, &bench.train_length);
  if (absl::ConsumePrefix(&argument, "--shapes=")) {
    bench.shapes = absl::StrSplit(argument, ',');
    return absl::OkStatus();
  }
  if (absl::ConsumePrefix(&argument, "--out=")) {
    parsed->out = std::string(argument);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", argument,
                   "' is unknown; use --dtype=fp16|bf16, --shapes=A,B, --batches=1,8, --context=N, --train_tokens=N, "
                   "--train_length=N, --tiny or --out=FILE"));
}

ModelConfig TinyShape() {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 300;
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.intermediate_size = 96;
  config.max_position_embeddings = 128;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  return config;
}

}  // namespace

BenchOptions BenchOptions::Tiny() {
  BenchOptions options;
  options.shapes = {"tiny"};
  options.batches = {1, 3};
  options.context = 20;
  options.decode_steps = 2;
  options.train_tokens = 32;
  options.train_length = 16;
  options.copied_bytes = 1 << 16;
  options.matrix_size = 64;
  options.repeats = {.warm_up = 1, .measured = 1};
  options.tiny = true;
  return options;
}

absl::StatusOr<ParsedOptions> ParseOptions(int argc, char** argv) {
  ParsedOptions parsed;
  for (int i = 1; i < argc; ++i) {
    if (absl::string_view(argv[i]) == "--tiny") parsed.bench = BenchOptions::Tiny();
  }
  for (int i = 1; i < argc; ++i) {
    if (absl::string_view(argv[i]) == "--tiny") continue;
    if (absl::Status status = ParseOne(argv[i], &parsed); !status.ok()) return status;
  }
  for (const std::string& shape : parsed.bench.shapes) {
    if (absl::Status status = ShapeOf(parsed.bench, shape).status(); !status.ok()) return status;
  }
  return parsed;
}

absl::StatusOr<ModelConfig> ShapeOf(const BenchOptions& options, const std::string& name) {
  if (options.tiny && name == "tiny") return TinyShape();
  return NamedShape(name);
}

}  // namespace lockstep::cuda
