#include "engine/checkpoint/hf_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

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
                         ::testing::Combine(::testing::Values("Qwen2ForCausalLM", "LlamaForCausalLM"),
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
  for (const char* name : {"qwen2_fp16", "llama_bf16_sharded"}) {
    const std::string dir = std::string("engine/checkpoint/testdata/") + name;
    const auto config = ReadHfConfig(dir);
    ASSERT_TRUE(config.ok()) << config.status();
    const bool qwen2 = config->architecture == "Qwen2ForCausalLM";
    EXPECT_EQ(config->hidden_size, 16);
    EXPECT_EQ(config->num_kv_heads, 2);
    EXPECT_EQ(config->rope_theta, qwen2 ? 1000000.0f : 500000.0f);
    EXPECT_EQ(config->rms_norm_eps, 1e-5f);
    EXPECT_EQ(config->tie_word_embeddings, qwen2);
    EXPECT_EQ(config->eos_token_ids, qwen2 ? std::vector<int32_t>({23}) : std::vector<int32_t>({22, 23}));
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
      for (int64_t i = 0; i < count; ++i) {
        const int64_t code = (7 * i + static_cast<int64_t>(tensor.name.size())) % 64 - 32;
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
                "architecture \"MistralForCausalLM\" is not supported; these are: LlamaForCausalLM, Qwen2ForCausalLM"},
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
        Hostile{"rope_parameters", "{\"rope_type\": \"llama3\"}", "rope_parameters of type \"llama3\""},
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
