#include "engine/checkpoint/adapter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "engine/base/process.h"
#include "engine/checkpoint/hf_folder.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/decoder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

const std::string kPeft = "engine/checkpoint/testdata/peft_qwen2";  // tests/golden/make_adapter_golden.py

class AdapterTest : public testing::Test {
 protected:
  void SetUp() override {
    auto config = ReadHfConfig(kPeft + "/base");
    ASSERT_TRUE(config.ok()) << config.status();
    config_ = *std::move(config);
    auto layout = MakeLowRankLayout(config_, 3, 6, {});
    ASSERT_TRUE(layout.ok()) << layout.status();
    layout_ = *std::move(layout);
    adapters_.resize(layout_.total_size);
    dir_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }

  // PEFT's configuration with one text replaced.
  std::string ConfigError(const std::string& from, const std::string& to) {
    const std::string text = ReadFile(kPeft + "/adapter/adapter_config.json").value();
    EXPECT_NE(text.find(from), std::string::npos) << from;
    return std::string(CheckAdapterConfig(absl::StrReplaceAll(text, {{from, to}}), layout_, "x").message());
  }

  ModelConfig config_;
  LowRankLayout layout_;
  std::vector<float> adapters_;
  fs::path dir_;
};

std::vector<float> Floats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.Find(name);
  EXPECT_NE(entry, nullptr) << name;
  std::vector<float> values(entry == nullptr ? 0 : entry->num_elements);
  if (entry != nullptr) {
    EXPECT_TRUE(file.ReadFloats(*entry, 0, entry->num_elements, values.data()).ok());
  }
  return values;
}

// Logits and gradients of a PeftModel, which adds scale B (A x) to each layer's output, against ours with the merged W.
TEST_F(AdapterTest, PeftsAdapterGivesPeftsLogitsAndGradients) {
  ASSERT_TRUE(LoadAdapter(kPeft + "/adapter", layout_, adapters_.data()).ok());
  std::vector<float> arena(ParamLayout(config_).total_size);
  ASSERT_TRUE(LoadHfArena(kPeft + "/base", config_, arena.data()).ok());
  Weights weights(config_, DType::kF32);
  for (int param = 0; param < static_cast<int>(weights.layout.params.size()); ++param) {
    const ParamSpec& spec = weights.layout.params[param];
    AddLowRank(layout_, adapters_.data(), param, 0, spec.rows, spec.cols, arena.data() + spec.offset);
  }
  weights.SetFromArena(arena.data());

  const auto expected = SafetensorsFile::Open(kPeft + "/expected.safetensors");
  ASSERT_TRUE(expected.ok()) << expected.status();
  const std::vector<float> logits = Floats(**expected, "logits");
  PackedBatch batch;
  for (const float token : Floats(**expected, "tokens")) batch.tokens.push_back(static_cast<int32_t>(token));
  const int64_t T = static_cast<int64_t>(batch.tokens.size()), V = config_.vocab_size;
  batch.cu_seqlens = {0, static_cast<int32_t>(T)};
  for (int32_t t = 0; t + 1 < T; ++t) {
    batch.loss_rows.push_back(t);
    batch.targets.push_back(batch.tokens[t + 1]);
  }
  const auto ops = MakeCpuOps(Numerics::kMatched, 1);
  Decoder decoder(config_, DType::kF32, ops.get());
  std::vector<float> log_prob(T - 1), coefficient(T - 1, 1.0f), gradients(layout_.total_size);
  decoder.ForwardPacked(weights, batch, 1.0f, false, log_prob.data(), nullptr);
  for (int64_t t = 0; t + 1 < T; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < V; ++v) sum += std::exp(double{logits[t * V + v]});
    EXPECT_NEAR(log_prob[t], logits[t * V + batch.targets[t]] - std::log(sum), 2e-5) << t;
  }
  decoder.Backward(weights, batch, 1.0f, coefficient.data(),
                   LowRankGradients{&layout_, adapters_.data(), gradients.data()});
  for (const LowRankAdapter& adapter : layout_.adapters) {
    for (const bool is_a : {true, false}) {
      const std::string name = "base_model.model." + adapter.module + (is_a ? ".lora_A.weight" : ".lora_B.weight");
      const std::vector<float> truth = Floats(**expected, name);
      const float* ours = gradients.data() + (is_a ? adapter.a_offset : adapter.b_offset);
      double difference = 0, norm = 0;
      for (size_t i = 0; i < truth.size(); ++i) {
        difference += std::pow(double{ours[i]} - double{truth[i]}, 2);
        norm += std::pow(double{truth[i]}, 2);
      }
      EXPECT_GT(norm, 0) << name;
      EXPECT_LT(std::sqrt(difference), 1e-4 * std::sqrt(norm)) << name;
    }
  }
}

TEST_F(AdapterTest, WhatIsWrittenIsReadBackWithTheSameBits) {
  ASSERT_TRUE(LoadAdapter(kPeft + "/adapter", layout_, adapters_.data()).ok());
  const absl::Status written = WriteAdapterFiles(dir_.string(), "models/base", layout_, adapters_.data());
  ASSERT_TRUE(written.ok()) << written;
  std::vector<float> again(adapters_.size());
  const absl::Status read = LoadAdapter(dir_.string(), layout_, again.data());
  ASSERT_TRUE(read.ok()) << read;
  EXPECT_EQ(std::memcmp(again.data(), adapters_.data(), again.size() * sizeof(float)), 0);
  const auto theirs = SafetensorsFile::Open(kPeft + "/adapter/adapter_model.safetensors");
  const auto ours = SafetensorsFile::Open((dir_ / "adapter_model.safetensors").string());
  ASSERT_TRUE(ours.ok()) << ours.status();
  ASSERT_EQ((*ours)->tensors().size(), (*theirs)->tensors().size());
  for (const auto& [name, entry] : (*theirs)->tensors()) {
    ASSERT_NE((*ours)->Find(name), nullptr) << name;
    EXPECT_EQ((*ours)->Find(name)->shape, entry.shape) << name;
  }
  const auto config = nlohmann::json::parse(ReadFile((dir_ / "adapter_config.json").string()).value());
  EXPECT_EQ(config["base_model_name_or_path"], "models/base");
  EXPECT_EQ(config["r"], 3);
  EXPECT_EQ(config["lora_alpha"], 6.0);
}

TEST_F(AdapterTest, RefusesWhatWouldNotBeTheSameProductInOneLineEach) {
  EXPECT_EQ(ConfigError("\"r\": 3", "\"r\": 4"), "x: r is 4, lora.rank is 3; set them to the same");
  EXPECT_EQ(ConfigError("\"lora_alpha\": 6", "\"lora_alpha\": 8"),
            "x: lora_alpha is 8, lora.alpha is 6; set them to the same");
  EXPECT_NE(ConfigError("\"use_dora\": false", "\"use_dora\": true").find("use_dora is true"), std::string::npos);
  EXPECT_NE(ConfigError("\"use_rslora\": false", "\"use_rslora\": true").find("use_rslora"), std::string::npos);
  EXPECT_NE(ConfigError("\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 1}").find("rank_pattern"),
            std::string::npos);
  EXPECT_NE(ConfigError("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]").find("modules_to_save"),
            std::string::npos);
  EXPECT_NE(ConfigError("\"bias\": \"none\"", "\"bias\": \"all\"").find("bias is 'all'"), std::string::npos);
  EXPECT_NE(ConfigError("\"LORA\"", "\"IA3\"").find("peft_type is 'IA3'"), std::string::npos);
  EXPECT_NE(ConfigError("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"").find("pissa"),
            std::string::npos);
  EXPECT_NE(ConfigError("\"o_proj\",", "").find("lora.target_modules are"), std::string::npos);
  EXPECT_NE(ConfigError("\"o_proj\",", "7,").find("target_modules has 7"), std::string::npos);
  EXPECT_NE(ConfigError("\"r\": 3", "\"r\": \"3\""), "");
  EXPECT_NE(ConfigError("{", "["), "");
}

TEST_F(AdapterTest, RefusesTensorsOfAnotherModel) {
  ASSERT_TRUE(WriteAdapterFiles(dir_.string(), "base", layout_, adapters_.data()).ok());
  ModelConfig wider = config_;
  wider.intermediate_size = 24;
  const auto layout = MakeLowRankLayout(wider, 3, 6, {});
  std::vector<float> arena(layout->total_size);
  EXPECT_NE(LoadAdapter(dir_.string(), *layout, arena.data()).message().find("has shape [20, 3], must have [24, 3]"),
            absl::string_view::npos);
  ModelConfig deeper = config_;
  deeper.num_layers = 3;
  const auto deep = MakeLowRankLayout(deeper, 3, 6, {});
  arena.resize(deep->total_size);
  EXPECT_NE(LoadAdapter(dir_.string(), *deep, arena.data()).message().find("layers.2.self_attn.q_proj.lora_A"),
            absl::string_view::npos);
  ModelConfig shallower = config_;
  shallower.num_layers = 1;
  EXPECT_NE(LoadAdapter(dir_.string(), *MakeLowRankLayout(shallower, 3, 6, {}), arena.data())
                .message()
                .find("is not one of the adapter's modules"),
            absl::string_view::npos);
  adapters_[5] = NAN;
  ASSERT_TRUE(WriteAdapterFiles(dir_.string(), "base", layout_, adapters_.data()).ok());
  EXPECT_NE(LoadAdapter(dir_.string(), layout_, arena.data()).message().find("NaN or infinite"),
            absl::string_view::npos);
  std::ofstream(dir_ / "adapter_model.safetensors", std::ios::trunc) << "short";
  EXPECT_FALSE(LoadAdapter(dir_.string(), layout_, arena.data()).ok());
  EXPECT_TRUE(absl::IsNotFound(LoadAdapter((dir_ / "absent").string(), layout_, arena.data())));
}

// A model folder written from weights has the bytes of the one written from the arena that those weights hold.
TEST_F(AdapterTest, AFolderWrittenFromWeightsIsTheOneWrittenFromTheirArena) {
  const auto weights = LoadHfWeights(kPeft + "/base", DType::kF16);
  ASSERT_TRUE(weights.ok()) << weights.status();
  std::vector<float> arena((*weights)->layout.total_size);
  (*weights)->CopyToArena(arena.data());
  const std::string a = (dir_ / "a").string(), b = (dir_ / "b").string();
  ASSERT_TRUE(WriteHfFolder(a, config_, arena.data(), DType::kF16, "").ok());
  ASSERT_TRUE(WriteHfFolder(b, config_, weights->get(), DType::kF16, "").ok());
  EXPECT_EQ(ReadFile(a + "/model.safetensors").value(), ReadFile(b + "/model.safetensors").value());
}

}  // namespace
}  // namespace lockstep
