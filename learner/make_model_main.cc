// lockstep_make_model: a Hugging Face folder with random weights. `lockstep make-model` runs it.
#include <cstdio>
#include <string>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/model/named_shapes.h"
#include "engine/tokenizer/tokenizer.h"

ABSL_FLAG(std::string, shape, "", "a known shape (qwen2.5-0.5b, ...) or a config.json");
ABSL_FLAG(std::string, dtype, "fp16", "fp16, bf16 or fp32");
ABSL_FLAG(uint64_t, seed, 1, "of the weights");
ABSL_FLAG(double, std, 0.02, "standard deviation of the matrices; output projections of a layer get less");
ABSL_FLAG(std::string, tokenizer, "", "folder whose tokenizer files are copied");

namespace lockstep {
namespace {

constexpr uint64_t kMaxConfigBytes = 1 << 20;

absl::StatusOr<ModelConfig> ShapeFromFlag(const std::string& shape) {
  if (shape.empty()) return absl::InvalidArgumentError("--shape is missing; it names a known shape or a config.json");
  if (!absl::EndsWith(shape, ".json")) return NamedShape(shape);
  const auto text = ReadFile(shape, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  return ParseHfConfig(*text, shape);
}

absl::Status Run(const std::string& dir) {
  const auto config = ShapeFromFlag(absl::GetFlag(FLAGS_shape));
  if (!config.ok()) return config.status();
  const auto dtype = ParseDType(absl::GetFlag(FLAGS_dtype));
  if (!dtype.ok()) return absl::InvalidArgumentError(absl::StrCat("--dtype: ", std::string(dtype.status().message())));
  const auto std = static_cast<float>(absl::GetFlag(FLAGS_std));
  if (!(std > 0 && std <= 1)) return absl::InvalidArgumentError("--std must be above 0 and at most 1");
  const std::string tokenizer_dir = absl::GetFlag(FLAGS_tokenizer);
  if (!tokenizer_dir.empty()) {
    const auto tokenizer = Tokenizer::Load(tokenizer_dir);
    if (!tokenizer.ok()) return tokenizer.status();
    if ((*tokenizer)->vocab_size() > config->vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(tokenizer_dir, ": the tokenizer has ids up to ",
                                                     (*tokenizer)->vocab_size() - 1, ", the shape's vocabulary has ",
                                                     config->vocab_size));
    }
  }
  const absl::Status status = WriteRandomHfFolder(dir, *config, absl::GetFlag(FLAGS_seed), std, *dtype, tokenizer_dir);
  if (!status.ok()) return status;
  const ParamLayout layout(*config);
  std::printf("%s: %s, %.2f million parameters in %s (%.2f GiB)%s\n", dir.c_str(), config->architecture.c_str(),
              static_cast<double>(layout.total_size) / 1e6, std::string(DTypeName(*dtype)).c_str(),
              static_cast<double>(layout.total_size) * static_cast<double>(DTypeSize(*dtype)) / (1 << 30),
              tokenizer_dir.empty() ? ", no tokenizer" : "");
  return absl::OkStatus();
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("a model folder with random weights: lockstep_make_model --shape=NAME OUT_DIR");
  const std::vector<char*> words = absl::ParseCommandLine(argc, argv);
  if (words.size() != 2) {
    std::fprintf(stderr, "error: give one OUT_DIR\n");
    return 2;
  }
  const absl::Status status = lockstep::Run(words[1]);
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
