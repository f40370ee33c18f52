#include "learner/setup.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/process.h"
#include "engine/checkpoint/adapter.h"
#include "engine/checkpoint/hf_folder.h"
#include "google/protobuf/text_format.h"
#include "learner/device_engine.h"

namespace lockstep {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr float kInitialStd = 0.02f;  // of a model that starts from nothing: GPT-2's

absl::StatusOr<DType> DTypeOf(const std::string& name, const char* key) {
  auto dtype = ParseDType(name);
  if (dtype.ok()) return dtype;
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", std::string(dtype.status().message())));
}

// Every prompt and the longest response fit the model; key names the setting of max_tokens.
absl::Status CheckLengths(const LearnerSetup& setup, const std::string& path, const std::vector<Problem>& problems,
                          int64_t max_tokens, const char* key) {
  const int64_t limit = setup.model.max_position_embeddings;
  for (size_t i = 0; i < problems.size(); ++i) {
    const int64_t prompt = static_cast<int64_t>(problems[i].prompt_tokens.size());
    if (prompt + max_tokens > limit) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": problem ", i + 1, " has ", prompt,
                                                     " prompt tokens, with ", key, " ", max_tokens,
                                                     " above the model's ", limit, "; lower ", key));
    }
  }
  return absl::OkStatus();
}

absl::Status LoadModel(LearnerSetup* setup) {
  const std::string& path = setup->config.model().path();
  if (path.empty()) return absl::InvalidArgumentError("model.path is empty; it names a Hugging Face model folder");
  auto model = ReadHfConfig(path);
  if (!model.ok()) return model.status();
  setup->model = *std::move(model);
  auto tokenizer = Tokenizer::Load(path);
  if (!tokenizer.ok()) return tokenizer.status();
  setup->tokenizer = *std::move(tokenizer);
  if (setup->tokenizer->vocab_size() > setup->model.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the tokenizer has ids up to ",
                                                   setup->tokenizer->vocab_size() - 1, ", vocab_size is ",
                                                   setup->model.vocab_size));
  }
  setup->stop_token_ids = setup->model.eos_token_ids;
  if (const int32_t eos = setup->tokenizer->eos_token_id(); eos >= 0) setup->stop_token_ids.push_back(eos);
  auto& stops = setup->stop_token_ids;
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  return absl::OkStatus();
}

absl::Status LoadData(LearnerSetup* setup) {
  const v1::DataConfig& data = setup->config.data();
  if (data.train().empty()) return absl::InvalidArgumentError("data.train is empty; it names a JSONL file");
  DatasetOptions options;
  options.path = data.train();
  options.prompt_template = data.prompt_template();
  options.model_dir = setup->config.model().path();
  options.max_prompt_tokens = data.max_prompt_tokens();
  options.max_sequence_tokens = setup->model.max_position_embeddings;
  options.needs_response = setup->mode == LearnerMode::kPretrain;
  options.needs_answer = !options.needs_response;
  const int32_t eos = setup->tokenizer->eos_token_id();
  options.eos_token_id = eos >= 0 || setup->stop_token_ids.empty() ? eos : setup->stop_token_ids.front();
  auto problems = LoadDataset(options, *setup->tokenizer);
  if (!problems.ok()) return problems.status();
  setup->problems = *std::move(problems);
  if (setup->mode == LearnerMode::kPretrain) return absl::OkStatus();  // the data set checks each line
  return CheckLengths(*setup, data.train(), setup->problems, setup->config.rollout().max_tokens(),
                      "rollout.max_tokens");
}

absl::Status LoadEvalData(LearnerSetup* setup) {
  const v1::RunConfig& config = setup->config;
  const bool wanted = setup->mode == LearnerMode::kEval ||
                      (setup->mode == LearnerMode::kReinforce && config.trainer().eval_every() > 0);
  if (!wanted) return absl::OkStatus();
  if (config.data().eval().empty()) return absl::InvalidArgumentError("data.eval is empty; it names a JSONL file");
  DatasetOptions options;
  options.path = config.data().eval();
  options.prompt_template = config.data().prompt_template();
  options.max_prompt_tokens = config.data().max_prompt_tokens();
  options.max_problems = config.eval().max_problems();
  options.needs_answer = true;
  auto problems = LoadDataset(options, *setup->tokenizer);
  if (!problems.ok()) return problems.status();
  setup->eval_problems = *std::move(problems);
  const bool own = config.eval().max_tokens() > 0;
  return CheckLengths(*setup, options.path, setup->eval_problems,
                      own ? config.eval().max_tokens() : config.rollout().max_tokens(),
                      own ? "eval.max_tokens" : "rollout.max_tokens");
}

absl::Status LoadInitialAdapters(const LearnerSetup& setup, Trainer& trainer) {
  const std::string& adapter = setup.config.model().adapter();
  if (adapter.empty()) {
    InitializeLowRank(*trainer.lora(), setup.config.seed(), trainer.arena());
  } else if (absl::Status status = LoadAdapter(adapter, *trainer.lora(), trainer.arena()); !status.ok()) {
    return status;
  }
  return trainer.RefreshWeights();
}

}  // namespace

absl::StatusOr<LearnerMode> ParseLearnerMode(const std::string& name) {
  if (name == "rl") return LearnerMode::kReinforce;
  if (name == "pretrain") return LearnerMode::kPretrain;
  if (name == "filter") return LearnerMode::kFilter;
  if (name == "eval") return LearnerMode::kEval;
  return absl::InvalidArgumentError(absl::StrCat("--mode is '", name, "'; known are rl, pretrain, filter, eval"));
}

absl::StatusOr<v1::RunConfig> ReadRunConfig(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("--config is missing; it names the resolved run configuration");
  auto text = ReadFile(path, kMaxConfigBytes);
  if (!text.ok()) return text.status();
  v1::RunConfig config;
  if (!google::protobuf::TextFormat::ParseFromString(*text, &config)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a RunConfig in protobuf text form"));
  }
  if (config.run_dir().empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": run_dir is empty"));
  return config;
}

absl::StatusOr<LearnerSetup> LoadLearnerSetup(const v1::RunConfig& config, LearnerMode mode, bool with_data) {
  LearnerSetup setup;
  setup.config = config;
  setup.mode = mode;
  std::error_code error;
  std::filesystem::create_directories(config.run_dir(), error);
  if (error)
    return absl::UnavailableError(absl::StrCat("cannot make run_dir ", config.run_dir(), ": ", error.message()));
  setup.run_id = std::filesystem::path(config.run_dir()).lexically_normal().filename().string();
  auto learner_dtype = DTypeOf(config.learner().dtype(), "learner.dtype");
  if (!learner_dtype.ok()) return learner_dtype.status();
  setup.learner_dtype = *learner_dtype;
  if (mode != LearnerMode::kPretrain) {
    auto rollout_dtype = DTypeOf(config.rollout().dtype(), "rollout.dtype");
    if (!rollout_dtype.ok()) return rollout_dtype.status();
    setup.rollout_dtype = *rollout_dtype;
  }
  if (config.numerics() != "matched" && config.numerics() != "native") {
    return absl::InvalidArgumentError(absl::StrCat("numerics is '", config.numerics(), "'; known are matched, native"));
  }
  if (!config.device().empty() && config.device() != "cpu" && config.device() != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat("device is '", config.device(), "'; known are cpu, cuda"));
  }
  setup.numerics = config.numerics() == "matched" ? Numerics::kMatched : Numerics::kNative;
  if (absl::Status status = LoadModel(&setup); !status.ok()) return status;
  if (mode == LearnerMode::kReinforce) {
    const auto routing = RoutingRowBytes(config.learner().router_replay(), setup.model);
    if (!routing.ok()) return routing.status();
  }
  if (with_data) {
    if (mode != LearnerMode::kEval) {
      if (absl::Status status = LoadData(&setup); !status.ok()) return status;
    }
    if (absl::Status status = LoadEvalData(&setup); !status.ok()) return status;
  }
  return setup;
}

absl::StatusOr<std::unique_ptr<Trainer>> MakeTrainer(const LearnerSetup& setup, Collectives* collectives) {
  TrainerOptions options;
  options.config = setup.model;
  options.dtype = setup.learner_dtype;
  options.numerics = setup.numerics;
  options.learner = setup.config.learner();
  options.algorithm = setup.config.algorithm();
  options.lora = {setup.config.lora(), setup.config.model().path(), setup.config.model().clamp_fp16()};
  if (setup.mode == LearnerMode::kPretrain) {  // supervised steps use no objective
    options.algorithm.set_name("pg");
    options.algorithm.set_kl_beta(0);
    options.learner.set_router_replay("off");
  }
  options.temperature = setup.config.rollout().temperature();
  options.max_response_tokens = std::max<int64_t>(1, setup.config.rollout().max_tokens());
  if (setup.config.device() != "cuda") return Trainer::Create(options, collectives);
  return Trainer::Create(options, collectives, [process = setup.process](const TrainEngineOptions& engine) {
    return MakeDeviceTrainEngine(engine, process);
  });
}

absl::Status LoadInitialWeights(const LearnerSetup& setup, Trainer& trainer) {
  if (trainer.lora() != nullptr) return LoadInitialAdapters(setup, trainer);
  const std::string& path = setup.config.model().path();
  const bool has_weights = std::filesystem::exists(path + "/model.safetensors") ||
                           std::filesystem::exists(path + "/model.safetensors.index.json");
  if (!has_weights && setup.mode == LearnerMode::kPretrain) {
    InitializeArena(setup.model, setup.config.seed(), kInitialStd, trainer.arena());
    LogInfo(path, " has no weights: starting from random ones, seed ", setup.config.seed());
  } else {
    LoadOptions load;
    load.dtype = setup.learner_dtype;  // the FP32 master weights must fit in the type that they are rounded to
    load.clamp = setup.learner_dtype == DType::kF16 && setup.config.model().clamp_fp16();
    load.progress = LogLoadProgress(path);
    if (absl::Status status = LoadHfArena(path, setup.model, trainer.arena(), load); !status.ok()) return status;
  }
  return trainer.RefreshWeights();
}

}  // namespace lockstep
