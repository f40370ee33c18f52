// Prints, as a Markdown table, the fraction of tokens whose probability ratio leaves [0.99, 1.01] only because the
// shape of the batch changed: for each dtype, native and matched.
//
//   bazel run //learner:batch_shape_table -- --model=FOLDER
//   bazel run //learner:batch_shape_table              (a random model of --hidden and --layers)
#include <cstdio>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "engine/checkpoint/hf_folder.h"
#include "learner/batch_shape.h"

ABSL_FLAG(std::string, model, "", "Hugging Face model folder; empty: a random model");
ABSL_FLAG(int, hidden, 256, "hidden size of the random model, a multiple of 64");
ABSL_FLAG(int, layers, 8, "layers of the random model");
ABSL_FLAG(int, sequences, 32, "random sequences");
ABSL_FLAG(int, length, 192, "their greatest length");
ABSL_FLAG(int, threads, 2, "compute threads");
ABSL_FLAG(int, seed, 1, "of the weights and the tokens");

namespace lockstep {
namespace {

ModelConfig RandomConfig(int hidden, int layers) {
  ModelConfig config;
  config.architecture = "Qwen2ForCausalLM";
  config.vocab_size = 4096;
  config.hidden_size = hidden;
  config.num_layers = layers;
  config.num_heads = hidden / 32;
  config.num_kv_heads = hidden / 64;
  config.head_dim = 32;
  config.intermediate_size = 4 * hidden;
  config.max_position_embeddings = 4096;
  config.qkv_bias = true;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {0};
  return config;
}

// The arena in FP32, from the folder or at random.
absl::StatusOr<std::vector<float>> LoadArena(ModelConfig* config) {
  const std::string path = absl::GetFlag(FLAGS_model);
  if (path.empty()) {
    *config = RandomConfig(absl::GetFlag(FLAGS_hidden), absl::GetFlag(FLAGS_layers));
  } else {
    auto read = ReadHfConfig(path);
    if (!read.ok()) return read.status();
    *config = *std::move(read);
  }
  if (absl::Status status = config->Validate(); !status.ok()) return status;
  std::vector<float> arena(ParamLayout(*config).total_size);
  if (path.empty()) {
    InitializeArena(*config, absl::GetFlag(FLAGS_seed), 0.08f, arena.data());
  } else if (absl::Status status = LoadHfArena(path, *config, arena.data()); !status.ok()) {
    return status;
  }
  return arena;
}

int Main() {
  ModelConfig config;
  const auto arena = LoadArena(&config);
  if (!arena.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(arena.status().message()).c_str());
    return 2;
  }
  const int length = std::min<int>(absl::GetFlag(FLAGS_length), static_cast<int>(config.max_position_embeddings));
  const auto sequences = RandomSequences(config, std::max(1, absl::GetFlag(FLAGS_sequences)), std::max(2, length),
                                         absl::GetFlag(FLAGS_seed));
  std::printf(
      "| numerics | dtype | batch shape | tokens | outside of [0.99, 1.01] | other bits | mean abs log ratio | "
      "max |\n|---|---|---|---|---|---|---|---|\n");
  for (Numerics numerics : {Numerics::kNative, Numerics::kMatched}) {
    for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      Weights weights(config, dtype);
      weights.SetFromArena(arena->data());
      for (const BatchShapeRow& row :
           MeasureBatchShapes(weights, numerics, std::max(1, absl::GetFlag(FLAGS_threads)), sequences)) {
        std::printf("| %s | %s | %s | %lld | %.4f%% | %.2f%% | %.2e | %.2e |\n",
                    numerics == Numerics::kNative ? "native" : "matched", std::string(DTypeName(dtype)).c_str(),
                    row.shape.c_str(), static_cast<long long>(row.tokens), 100 * row.outside, 100 * row.different,
                    row.mean_abs_log_ratio, row.max_abs_log_ratio);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("what the shape of a batch alone does to log-probs");
  absl::ParseCommandLine(argc, argv);
  return lockstep::Main();
}
