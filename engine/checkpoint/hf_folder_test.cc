#include "engine/checkpoint/hf_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/json.h"
#include "engine/base/process.h"
#include "engine/checkpoint/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string TempDir() {
  std::string pattern = ::testing::TempDir() + "/hf_folder_test.XXXXXX";
  return mkdtemp(pattern.data());
}

ModelConfig SmallConfig(const std::string& architecture, bool tied) {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 37;
  config.hidden_size = 24;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.intermediate_size = 40;
  config.max_position_embeddings = 128;
  config.rms_norm_eps = 1e-6f;
  config.rope_theta = 1000000.0f;
  config.qkv_bias = architecture == "Qwen2ForCausalLM";
  config.tie_word_embeddings = tied;
  config.eos_token_ids = {35};
  if (architecture == "LlamaForCausalLM") config.rope_scaling = {true, 8.0f, 1.0f, 4.0f, 64};
  config.qk_norm = architecture.rfind("Qwen3", 0) == 0;
  if (architecture == "Qwen3MoeForCausalLM") {
    config.num_experts = 3;
    config.experts_per_token = 2;
    config.moe_intermediate_size = 13;
    config.norm_topk_prob = true;
    config.mlp_only_layers = {1};
  }
  return config;
}

std::vector<float> SmallArena(const ModelConfig& config) {
  std::vector<float> arena(static_cast<size_t>(ParamLayout(config).total_size));
  InitializeArena(config, 5, 0.5f, arena.data());
  for (size_t i = 0; i < arena.size(); i += 7)
    arena[i] += 0.001f * static_cast<float>(i % 100);  // biases and norms too
  return arena;
}

class RoundTripTest : public ::testing::TestWithParam<std::tuple<const char*, bool, DType>> {};

TEST_P(RoundTripTest, ReadsBackWhatWasWrittenRoundedOnce) {
  const auto& [architecture, tied, dtype] = GetParam();
  const ModelConfig config = SmallConfig(architecture, tied);
  const std::vector<float> arena = SmallArena(config);
  const std::string dir = TempDir() + "/model";
  const absl::Status written = WriteHfFolder(dir, config, arena.data(), dtype, "");
  ASSERT_TRUE(written.ok()) << written;
  const auto read = ReadHfConfig(dir);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->Hash(), config.Hash());
  EXPECT_EQ(read->rms_norm_eps, config.rms_norm_eps);
  EXPECT_EQ(read->rope_theta, config.rope_theta);
  EXPECT_EQ(read->eos_token_ids, config.eos_token_ids);
  EXPECT_EQ(read->bos_token_id, -1);
  std::vector<float> loaded(arena.size());
  const absl::Status status = LoadHfArena(dir, *read, loaded.data());
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < arena.size(); ++i) ASSERT_EQ(loaded[i], RoundTo(dtype, arena[i])) << i;
  // Weights of another dtype than the file's, through rows instead of the arena.
  for (const DType target : {DType::kF32, DType::kF16, DType::kBF16}) {
    const auto weights = LoadHfWeights(dir, target);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ((*weights)->version, 0u);
    std::vector<float> copied(arena.size());
    (*weights)->CopyToArena(copied.data());
    for (size_t i = 0; i < arena.size(); ++i) ASSERT_EQ(copied[i], RoundTo(target, loaded[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RoundTripTest,
                         ::testing::Combine(::testing::Values("Qwen2ForCausalLM", "LlamaForCausalLM",
                                                              "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
                                            ::testing::Bool(),
                                            ::testing::Values(DType::kF32, DType::kF16, DType::kBF16)));

TEST(HfFolder, ReadsShardsAndRefusesAnIndexThatLies) {
  const ModelConfig config = SmallConfig("Qwen2ForCausalLM", false);
  const std::vector<float> arena = SmallArena(config);
  const ParamLayout layout(config);
  const std::string dir = TempDir();
  std::vector<SafetensorsSource> shards[2];
  json map = json::object();
  for (size_t i = 0; i < layout.hf_tensors.size(); ++i) {
    const HfTensor& tensor = layout.hf_tensors[i];
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    shards[i % 2].push_back(
        {tensor.name, DType::kF32, tensor.shape, arena.data() + param.offset + tensor.row_begin * cols});
    map[tensor.name] = i % 2 == 0 ? "a.safetensors" : "b.safetensors";
  }
  ASSERT_TRUE(WriteSafetensors(dir + "/a.safetensors", shards[0], {}).ok());
  ASSERT_TRUE(WriteSafetensors(dir + "/b.safetensors", shards[1], {}).ok());
  const std::string index = dir + "/model.safetensors.index.json";
  ASSERT_TRUE(WriteFileAtomically(index, json{{"weight_map", map}}.dump()).ok());
  std::vector<float> loaded(arena.size());
  const absl::Status status = LoadHfArena(dir, config, loaded.data());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(loaded, arena);
  map["model.norm.weight"] = map["model.norm.weight"] == "a.safetensors" ? "b.safetensors" : "a.safetensors";
  ASSERT_TRUE(WriteFileAtomically(index, json{{"weight_map", map}}.dump()).ok());
  EXPECT_THAT(std::string(LoadHfArena(dir, config, loaded.data()).message()),
              HasSubstr("tensor \"model.norm.weight\" is not in"));
  map["model.norm.weight"] = "../b.safetensors";
  ASSERT_TRUE(WriteFileAtomically(index, json{{"weight_map", map}}.dump()).ok());
  EXPECT_THAT(std::string(LoadHfArena(dir, config, loaded.data()).message()),
              HasSubstr("must be a file name of this folder"));
}

// Writes the model with one tensor changed by `edit`; the refusal of both loaders.
std::string RefusalWith(const ModelConfig& config, const std::function<void(std::vector<SafetensorsSource>*)>& edit) {
  const std::vector<float> arena = SmallArena(config);
  const ParamLayout layout(config);
  const std::string dir = TempDir();
  std::vector<SafetensorsSource> tensors;
  for (const HfTensor& tensor : layout.hf_tensors) {
    const ParamSpec& param = layout.params[tensor.param];
    const int64_t cols = param.kind == ParamSpec::Kind::kVector ? 1 : param.cols;
    tensors.push_back({tensor.name, DType::kF32, tensor.shape, arena.data() + param.offset + tensor.row_begin * cols});
  }
  edit(&tensors);
  EXPECT_TRUE(WriteSafetensors(dir + "/model.safetensors", tensors, {}).ok());
  EXPECT_TRUE(WriteFileAtomically(dir + "/config.json", HfConfigJson(config, DType::kF32)).ok());
  const auto weights = LoadHfWeights(dir, DType::kF16);
  EXPECT_FALSE(weights.ok());
  const std::string message(weights.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos);
  return message;
}

// Folders written by transformers' save_pretrained; the values follow tests/golden/make_hf_folder_golden.py.
TEST(HfFolder, ReadsWhatTransformersWrites) {
  for (const std::string name :
       {"qwen2_fp16", "llama_bf16_sharded", "llama31_fp32", "qwen3_moe_bf16", "qwen3_moe_stacked_bf16"}) {
    SCOPED_TRACE(name);
    const std::string dir = "engine/checkpoint/testdata/" + name;
    const auto config = ReadHfConfig(dir);
    ASSERT_TRUE(config.ok()) << config.status();
    const bool moe = config->architecture == "Qwen3MoeForCausalLM";
    EXPECT_EQ(config->hidden_size, 16);
    EXPECT_EQ(config->num_kv_heads, 2);
    EXPECT_EQ(config->head_dim, moe || name == "llama31_fp32" ? 6 : 4);
    EXPECT_EQ(config->rope_theta, moe ? 10000.0f : name == "qwen2_fp16" ? 1000000.0f : 500000.0f);
    EXPECT_EQ(config->rms_norm_eps, 1e-5f);
    EXPECT_EQ(config->tie_word_embeddings, name == "qwen2_fp16" || name == "llama31_fp32");
    EXPECT_EQ(config->eos_token_ids,
              name == "llama_bf16_sharded" ? std::vector<int32_t>({22, 23}) : std::vector<int32_t>({23}));
    EXPECT_EQ(config->rope_scaling.llama3, name == "llama31_fp32");
    EXPECT_EQ(config->qk_norm, moe);
    if (config->rope_scaling.llama3) {
      EXPECT_EQ(config->rope_scaling.factor, 8.0f);
      EXPECT_EQ(config->rope_scaling.low_freq_factor, 1.0f);
      EXPECT_EQ(config->rope_scaling.high_freq_factor, 4.0f);
      EXPECT_EQ(config->rope_scaling.original_max_positions, 32);
    }
    if (moe) {
      EXPECT_EQ(config->num_experts, 3);
      EXPECT_EQ(config->experts_per_token, 2);
      EXPECT_EQ(config->moe_intermediate_size, 10);
      EXPECT_TRUE(config->norm_topk_prob);
      EXPECT_TRUE(config->HasExperts(0));
      EXPECT_FALSE(config->HasExperts(1));
    }
    EXPECT_EQ(config->bos_token_id, 1);
    const ParamLayout layout(*config);
    std::vector<float> arena(static_cast<size_t>(layout.total_size));
    const absl::Status status = LoadHfArena(dir, *config, arena.data());
    ASSERT_TRUE(status.ok()) << status;
    for (const HfTensor& tensor : layout.hf_tensors) {
      const ParamSpec& param = layout.params[tensor.param];
      const bool vector = param.kind == ParamSpec::Kind::kVector;
      const float* values = arena.data() + param.offset + tensor.row_begin * (vector ? 1 : param.cols);
      const int64_t count = tensor.shape[0] * (vector ? 1 : tensor.shape[1]);
      // transformers names an expert's values by the tensor of all experts.
      const std::string& known_as = tensor.stacked_name.empty() ? tensor.name : tensor.stacked_name;
      const int64_t first = tensor.stacked_row * param.cols;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t code = (7 * (first + i) + static_cast<int64_t>(known_as.size())) % 64 - 32;
        ASSERT_EQ(values[i], static_cast<float>(code) / 16) << tensor.name << " at " << i;
      }
    }
  }
}

TEST(HfFolder, NamesTheTensorThatDoesNotFit) {
  const ModelConfig config = SmallConfig("LlamaForCausalLM", false);
  EXPECT_THAT(RefusalWith(config, [](auto* tensors) { tensors->pop_back(); }),
              HasSubstr("tensor \"lm_head.weight\" is missing, which config.json's LlamaForCausalLM needs"));
  static const float kExtra[4] = {0, 0, 0, 0};
  EXPECT_THAT(RefusalWith(config,
                          [](auto* tensors) {
                            tensors->push_back({"model.extra", DType::kF32, {4}, kExtra});
                          }),
              HasSubstr("tensor \"model.extra\" is not one of a LlamaForCausalLM"));
  EXPECT_THAT(RefusalWith(config,
                          [](auto* tensors) {
                            (*tensors)[0].shape = {24, 37};
                          }),
              HasSubstr("tensor \"model.embed_tokens.weight\" has shape [24, 37], must have [37, 24]"));
}

TEST(HfFolder, CountsTheValuesThatFp16CannotHold) {
  const ModelConfig config = SmallConfig("LlamaForCausalLM", true);
  std::vector<float> embed(37 * 24, 0.5f);
  embed[3] = 70000.0f;
  embed[99] = -65505.0f;
  embed[100] = 65504.0f;
  const auto use = [&](auto* tensors) { (*tensors)[0].data = embed.data(); };
  EXPECT_THAT(
      RefusalWith(config, use),
      HasSubstr("tensor \"model.embed_tokens.weight\" has 2 values beyond 65504, the largest of fp16 (up to 70000)"));
  embed[5] = std::numeric_limits<float>::quiet_NaN();
  embed[6] = -std::numeric_limits<float>::infinity();
  EXPECT_THAT(RefusalWith(config, use), HasSubstr("has 2 values that are NaN or infinite"));
}

TEST(HfFolder, ClampsWhatFp16CannotHoldWhenAsked) {
  const ModelConfig config = SmallConfig("LlamaForCausalLM", true);
  std::vector<float> arena = SmallArena(config);
  arena[3] = 70000.0f;
  arena[99] = -1e6f;
  const std::string dir = TempDir() + "/m";
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF32, "").ok());
  LoadOptions options;
  options.clamp = true;
  const auto weights = LoadHfWeights(dir, DType::kF16, options);
  ASSERT_TRUE(weights.ok()) << weights.status();
  std::vector<float> loaded(arena.size());
  (*weights)->CopyToArena(loaded.data());
  EXPECT_EQ(loaded[3], 65504.0f);
  EXPECT_EQ(loaded[99], -65504.0f);
  // A learner that trains in fp16 keeps FP32 weights, which must fit in fp16 all the same.
  options.dtype = DType::kF16;
  ASSERT_TRUE(LoadHfArena(dir, config, loaded.data(), options).ok());
  EXPECT_EQ(loaded[3], 65504.0f);
  EXPECT_EQ(loaded[99], -65504.0f);
  EXPECT_EQ(loaded[100], arena[100]);
  options.clamp = false;
  EXPECT_THAT(
      std::string(LoadHfArena(dir, config, loaded.data(), options).message()),
      HasSubstr("\"model.embed_tokens.weight\" has 2 values beyond 65504, the largest of fp16 (up to 1e+06); use "
                "another dtype, or model.clamp_fp16: true"));
  EXPECT_TRUE(LoadHfArena(dir, config, loaded.data()).ok());
  EXPECT_EQ(loaded[3], 70000.0f);
}

TEST(HfFolder, LoadsTheSameOverAnyNumberOfThreadsAndTellsItsProgress) {
  ModelConfig config = SmallConfig("Qwen3MoeForCausalLM", false);
  config.vocab_size = 30011;  // several blocks of rows, with a part of a panel at the end
  config.hidden_size = 80;
  const std::vector<float> arena = SmallArena(config);
  const std::string dir = TempDir() + "/m";
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF32, "").ok());
  for (const int threads : {1, 5}) {
    LoadOptions options;
    options.threads = threads;
    int64_t last = 0;
    options.progress = [&](int64_t done, int64_t total) {
      EXPECT_GT(done, last);
      EXPECT_EQ(total, static_cast<int64_t>(arena.size()));
      last = done;
    };
    std::vector<float> loaded(arena.size());
    ASSERT_TRUE(LoadHfArena(dir, config, loaded.data(), options).ok());
    EXPECT_EQ(loaded, arena);
    EXPECT_EQ(last, static_cast<int64_t>(arena.size()));
    last = 0;
    const auto weights = LoadHfWeights(dir, DType::kF32, options);
    ASSERT_TRUE(weights.ok()) << weights.status();
    (*weights)->CopyToArena(loaded.data());
    EXPECT_EQ(loaded, arena);
  }
}

TEST(HfFolder, WritesShardsThatItReadsBack) {
  const ModelConfig config = SmallConfig("Qwen3MoeForCausalLM", false);
  const std::vector<float> arena = SmallArena(config);
  const std::string dir = TempDir() + "/m";
  constexpr uint64_t kLimit = 3000;
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF32, "", kLimit).ok());
  EXPECT_FALSE(std::filesystem::exists(dir + "/model.safetensors"));
  const json index = json::parse(ReadFile(dir + "/model.safetensors.index.json").value());
  EXPECT_EQ(index["metadata"]["total_size"], arena.size() * 4);
  EXPECT_EQ(index["weight_map"].size(), ParamLayout(config).hf_tensors.size());
  std::set<std::string> shards;
  for (const auto& item : index["weight_map"].items()) shards.insert(item.value().get<std::string>());
  ASSERT_GT(shards.size(), 3u);
  EXPECT_EQ(*shards.rbegin(), absl::StrFormat("model-%05d-of-%05d.safetensors", shards.size(), shards.size()));
  for (const std::string& name : shards) {
    const auto file = SafetensorsFile::Open(dir + "/" + name);
    ASSERT_TRUE(file.ok()) << file.status();
    uint64_t bytes = 0;
    for (const auto& [tensor, entry] : (*file)->tensors()) bytes += entry.end - entry.begin;
    EXPECT_TRUE(bytes <= kLimit || (*file)->tensors().size() == 1) << name << " has " << bytes;
  }
  std::vector<float> loaded(arena.size());
  ASSERT_TRUE(LoadHfArena(dir, config, loaded.data()).ok());
  EXPECT_EQ(loaded, arena);

  const std::string last = dir + "/" + *shards.rbegin();
  const std::string whole = ReadFile(last).value();
  ASSERT_TRUE(WriteFileAtomically(last, whole.substr(0, whole.size() - 1)).ok());
  EXPECT_THAT(std::string(LoadHfArena(dir, config, loaded.data()).message()), HasSubstr(last));
  ASSERT_TRUE(std::filesystem::remove(last));
  EXPECT_EQ(LoadHfArena(dir, config, loaded.data()).message(), "cannot open " + last + ": No such file or directory");
  ASSERT_TRUE(WriteFileAtomically(last, ReadFile(dir + "/" + *shards.begin()).value()).ok());
  EXPECT_THAT(std::string(LoadHfArena(dir, config, loaded.data()).message()), HasSubstr(" is in "));
}

TEST(HfFolder, RefusesTensorsOfIntegers) {
  const ModelConfig config = SmallConfig("LlamaForCausalLM", true);
  const std::vector<float> arena = SmallArena(config);
  const std::string dir = TempDir() + "/m";
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF32, "").ok());
  std::string bytes = ReadFile(dir + "/model.safetensors").value();
  bytes.replace(bytes.find("F32"), 3, "I32");
  ASSERT_TRUE(WriteFileAtomically(dir + "/model.safetensors", bytes).ok());
  EXPECT_THAT(std::string(LoadHfWeights(dir, DType::kF16).status().message()),
              HasSubstr("tensor \"model.embed_tokens.weight\" has dtype I32; F32, F16 and BF16 work"));
}

TEST(HfFolder, TiedModelsMayCarryTheirHeadAndOldLlamasTheirRotaryBuffer) {
  const ModelConfig config = SmallConfig("LlamaForCausalLM", true);
  const std::vector<float> arena = SmallArena(config);
  const std::string dir = TempDir() + "/m";
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF32, "").ok());
  const auto file = SafetensorsFile::Open(dir + "/model.safetensors");
  ASSERT_TRUE(file.ok());
  std::vector<SafetensorsSource> tensors;
  std::map<std::string, std::vector<float>> values;
  for (const auto& [name, entry] : (*file)->tensors()) {
    values[name].resize(static_cast<size_t>(entry.num_elements));
    ASSERT_TRUE((*file)->ReadFloats(entry, 0, entry.num_elements, values[name].data()).ok());
    tensors.push_back({name, DType::kF32, entry.shape, values[name].data()});
  }
  tensors.push_back({"lm_head.weight", DType::kF32, {37, 24}, values["model.embed_tokens.weight"].data()});
  tensors.push_back(
      {"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {3}, values["model.norm.weight"].data()});
  ASSERT_TRUE(WriteSafetensors(dir + "/model.safetensors", tensors, {}).ok());
  std::vector<float> loaded(arena.size());
  EXPECT_TRUE(LoadHfArena(dir, config, loaded.data()).ok());
  EXPECT_EQ(loaded, arena);
}

TEST(HfFolder, CopiesTheTokenizerAndRefusesAFolderThatExists) {
  const ModelConfig config = SmallConfig("Qwen2ForCausalLM", true);
  const std::vector<float> arena = SmallArena(config);
  const std::string source = TempDir();
  ASSERT_TRUE(WriteFileAtomically(source + "/tokenizer.json", "{}").ok());
  const std::string dir = TempDir() + "/m";
  ASSERT_TRUE(WriteHfFolder(dir, config, arena.data(), DType::kF16, source).ok());
  EXPECT_EQ(ReadFile(dir + "/tokenizer.json").value(), "{}");
  const json root = json::parse(ReadFile(dir + "/config.json").value());
  EXPECT_EQ(root["model_type"], "qwen2");
  EXPECT_EQ(root["torch_dtype"], "float16");
  EXPECT_EQ(root["rms_norm_eps"].dump(), "1e-06");
  EXPECT_EQ(WriteHfFolder(dir, config, arena.data(), DType::kF16, "").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(std::filesystem::path(dir).parent_path()),
                          std::filesystem::directory_iterator()),
            1);
}

TEST(HfFolder, NamesTheMissingFile) {
  const std::string dir = TempDir();
  EXPECT_EQ(ReadHfConfig(dir).status().message(), "cannot open " + dir + "/config.json: No such file or directory");
  std::vector<float> arena(1);
  EXPECT_EQ(LoadHfArena(dir, SmallConfig("LlamaForCausalLM", true), arena.data()).message(),
            "cannot open " + dir + "/model.safetensors: No such file or directory");
}

TEST(HfConfig, AddsTheEndTokensOfTheGenerationConfig) {
  const ModelConfig config = SmallConfig("Qwen2ForCausalLM", true);
  const std::string dir = TempDir();
  ASSERT_TRUE(WriteFileAtomically(dir + "/config.json", HfConfigJson(config, DType::kF16)).ok());
  ASSERT_TRUE(WriteFileAtomically(dir + "/generation_config.json", "{\"eos_token_id\": [36, 35]}").ok());
  EXPECT_EQ(ReadHfConfig(dir)->eos_token_ids, (std::vector<int32_t>{35, 36}));
  ASSERT_TRUE(WriteFileAtomically(dir + "/generation_config.json", "{\"eos_token_id\": 37}").ok());
  EXPECT_THAT(std::string(ReadHfConfig(dir).status().message()), HasSubstr("eos_token_id is 37"));
}

TEST(HfConfig, TakesTheDefaultsOfTransformersForWhatIsAbsent) {
  const auto config = ParseHfConfig(R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64,
      "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128})",
                                    "c.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->max_position_embeddings, 2048);
  EXPECT_EQ(config->rope_theta, 10000.0f);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_FALSE(config->tie_word_embeddings);
}

TEST(HfConfig, ReadsTheRopeParametersOfNewerTransformers) {
  json root = json::parse(HfConfigJson(SmallConfig("Qwen2ForCausalLM", true), DType::kF16));
  root.erase("rope_theta");
  root["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  const auto config = ParseHfConfig(root.dump(), "c.json");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 500000.0f);
}

TEST(HfConfig, ReadsLlama3ScalingOfBothTransformers) {
  json root = json::parse(HfConfigJson(SmallConfig("LlamaForCausalLM", true), DType::kF16));
  ASSERT_EQ(root["rope_scaling"]["rope_type"], "llama3");
  const auto old_style = ParseHfConfig(root.dump(), "c.json");
  ASSERT_TRUE(old_style.ok()) << old_style.status();
  json parameters = root["rope_scaling"];
  parameters["rope_theta"] = root["rope_theta"];
  root.erase("rope_scaling");
  root.erase("rope_theta");
  root["rope_parameters"] = parameters;
  const auto new_style = ParseHfConfig(root.dump(), "c.json");
  ASSERT_TRUE(new_style.ok()) << new_style.status();
  EXPECT_EQ(new_style->Hash(), old_style->Hash());
  EXPECT_EQ(new_style->rope_scaling.original_max_positions, 64);
  root["rope_parameters"].erase("low_freq_factor");
  EXPECT_THAT(std::string(ParseHfConfig(root.dump(), "c.json").status().message()),
              HasSubstr("low_freq_factor is missing"));
}

TEST(HfConfig, ReadsTheExpertsOfBothTransformersAndRefusesWhatTheyCannotBe) {
  const json good = json::parse(HfConfigJson(SmallConfig("Qwen3MoeForCausalLM", false), DType::kBF16));
  const auto refusal = [&](const char* key, const json& value) {
    json root = good;
    root[key] = value;
    return std::string(ParseHfConfig(root.dump(), "c.json").status().message());
  };
  json renamed = good;
  renamed["num_local_experts"] = good["num_experts"];
  renamed.erase("num_experts");
  ASSERT_TRUE(ParseHfConfig(renamed.dump(), "c.json").ok());
  EXPECT_EQ(ParseHfConfig(renamed.dump(), "c.json")->Hash(), ParseHfConfig(good.dump(), "c.json")->Hash());
  EXPECT_THAT(refusal("num_experts", nullptr), HasSubstr("num_experts is missing or 0"));
  EXPECT_THAT(refusal("num_experts", 0), HasSubstr("num_experts is missing or 0"));
  EXPECT_THAT(refusal("num_experts", 5000), HasSubstr("num_experts is 5000"));
  EXPECT_THAT(refusal("num_local_experts", 4), HasSubstr("num_experts is 3 and num_local_experts is 4"));
  EXPECT_THAT(refusal("num_experts_per_tok", 4), HasSubstr("num_experts_per_tok is 4, must be 1 to 3"));
  EXPECT_THAT(refusal("moe_intermediate_size", 0), HasSubstr("moe_intermediate_size is 0"));
  EXPECT_THAT(refusal("decoder_sparse_step", 0), HasSubstr("decoder_sparse_step is 0"));
  EXPECT_THAT(refusal("mlp_only_layers", 3), HasSubstr("mlp_only_layers is 3"));
  EXPECT_THAT(refusal("mlp_only_layers", json::array({-1})), HasSubstr("mlp_only_layers has -1"));
  EXPECT_THAT(refusal("norm_topk_prob", 1), HasSubstr("norm_topk_prob is 1"));
}

struct Hostile {
  const char* key;
  const char* value;
  const char* message;
};

class HostileConfigTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileConfigTest, IsRefusedInOneLine) {
  json root = json::parse(HfConfigJson(SmallConfig("Qwen2ForCausalLM", true), DType::kF16));
  ASSERT_TRUE(ParseHfConfig(root.dump(), "c.json").ok());
  root[GetParam().key] = json::parse(GetParam().value);
  const absl::Status status = ParseHfConfig(root.dump(), "c.json").status();
  ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  const std::string message(status.message());
  EXPECT_EQ(message.rfind("c.json: ", 0), 0u) << message;
  EXPECT_THAT(message, HasSubstr(GetParam().message));
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Files, HostileConfigTest,
    ::testing::Values(
        Hostile{"architectures", "null", "architectures is null"},
        Hostile{"architectures", "[\"MistralForCausalLM\"]",
                "architecture \"MistralForCausalLM\" is not supported; these are: LlamaForCausalLM, Qwen2ForCausalLM, "
                "Qwen3ForCausalLM, Qwen3MoeForCausalLM"},
        Hostile{"architectures", "[1]", "architectures is an array of 1"},
        Hostile{"hidden_act", "\"gelu\"", "hidden_act is \"gelu\", only silu"},
        Hostile{"attention_bias", "true", "attention_bias is true, which is not supported"},
        Hostile{"mlp_bias", "true", "mlp_bias is true"},
        Hostile{"use_sliding_window", "true", "use_sliding_window is true"},
        Hostile{"use_sliding_window", "1", "use_sliding_window is 1, must be true or false"},
        Hostile{"rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}",
                "rope_scaling of type \"yarn\" is not supported"},
        Hostile{"rope_scaling", "{\"type\": \"linear\"}", "rope_scaling of type \"linear\""},
        Hostile{"rope_scaling", "3", "rope_scaling is 3"},
        Hostile{"rope_parameters", "{\"rope_type\": \"llama3\"}", "factor is missing in the llama3 rope parameters"},
        Hostile{"rope_parameters", "{\"partial_rotary_factor\": 0.25}", "partial_rotary_factor is 0.25"},
        Hostile{"rope_scaling",
                "{\"rope_type\": \"llama3\", \"factor\": 0.5, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
                "\"original_max_position_embeddings\": 64}",
                "factor is 0.5"},
        Hostile{"rope_scaling",
                "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
                "\"original_max_position_embeddings\": 64}",
                "low_freq_factor is 4"},
        Hostile{"rope_scaling",
                "{\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4}",
                "original_max_position_embeddings is missing"},
        Hostile{"partial_rotary_factor", "0.5", "partial_rotary_factor is 0.5"},
        Hostile{"quantization_config", "{}", "quantized weights are not supported"},
        Hostile{"layer_types", "[\"sliding_attention\"]", "only full_attention"},
        Hostile{"vocab_size", "null", "vocab_size is missing"}, Hostile{"vocab_size", "0", "vocab_size is 0"},
        Hostile{"vocab_size", "-5", "vocab_size is -5"}, Hostile{"vocab_size", "1e9", "vocab_size is 1000000000.0"},
        Hostile{"vocab_size", "18446744073709551615", "vocab_size is 18446744073709551615"},
        Hostile{"vocab_size", "4294967296", "vocab_size is 4294967296"},
        Hostile{"hidden_size", "\"24\"", "hidden_size is \"24\", must be an integer"},
        Hostile{"num_hidden_layers", "16777217", "num_hidden_layers"},
        Hostile{"num_attention_heads", "5", "num_attention_heads is 5"},
        Hostile{"num_key_value_heads", "3", "multiple of num_key_value_heads"},
        Hostile{"head_dim", "7", "head_dim is 7"}, Hostile{"head_dim", "512", "head_dim is 512"},
        Hostile{"rms_norm_eps", "0", "rms_norm_eps is 0"},
        Hostile{"rms_norm_eps", "\"x\"", "rms_norm_eps is \"x\", must be a number"},
        Hostile{"rope_theta", "-1", "rope_theta is -1"}, Hostile{"eos_token_id", "37", "eos_token_id is 37"},
        Hostile{"eos_token_id", "[1, -2]", "eos_token_id is -2"},
        Hostile{"eos_token_id", "\"<e>\"", "eos_token_id is \"<e>\""},
        Hostile{"tie_word_embeddings", "\"yes\"", "tie_word_embeddings is \"yes\""},
        Hostile{"bos_token_id", "-7", "bos_token_id is -7"}));

TEST(RandomHfFolderTest, RandomWeightsWrittenInBlocksAreThoseOfTheArena) {
  ModelConfig config = SmallConfig("Qwen2ForCausalLM", true);
  const std::string parent = TempDir();
  config.vocab_size = 20000;  // the embedding has more elements than a block of the writer
  const ParamLayout layout(config);
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    const std::string dir = parent + "/random-" + std::string(DTypeName(dtype));
    ASSERT_TRUE(WriteRandomHfFolder(dir, config, 9, 0.3f, dtype, "").ok());
    std::vector<float> wanted(layout.total_size), loaded(layout.total_size);
    InitializeArena(config, 9, 0.3f, wanted.data());
    if (dtype == DType::kF16) {
      for (float& value : wanted) value = HalfToFloat(FloatToHalf(value));
    }
    const auto read = ReadHfConfig(dir);
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_TRUE(LoadHfArena(dir, *read, loaded.data()).ok());
    EXPECT_EQ(loaded, wanted);
  }
  EXPECT_FALSE(WriteRandomHfFolder(parent + "/random-fp16", config, 9, 0.3f, DType::kF16, "").ok())
      << "a folder that exists is left alone";
}

}  // namespace
}  // namespace lockstep
